package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// authority signs the certificates of one cluster, and writes them as NAME.crt and NAME.key into a folder.
type authority struct {
	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(folder string) (*authority, error) {
	a := &authority{folder: folder}
	err := a.issue("ca", &x509.Certificate{Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature})
	return a, err
}

// issue signs t, the first time with its own key.
func (a *authority) issue(name string, t *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	a.serial++
	t.SerialNumber = big.NewInt(a.serial)
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = t, key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", name, err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			return err
		}
		a.key = key
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: private}, ".pub": {Type: "PUBLIC KEY", Bytes: public}} {
		if err := os.WriteFile(filepath.Join(a.folder, name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (a *authority) server(name, subject string, groups []string, names []string, addresses ...string) error {
	t := &x509.Certificate{Subject: pkix.Name{CommonName: subject, Organization: groups}, DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, ip := range addresses {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(ip))
	}
	return a.issue(name, t)
}

// signer is what has no other use than its key.
func signer() *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: "service-accounts"}, KeyUsage: x509.KeyUsageDigitalSignature}
}

// user signs a certificate for a user of the API in groups, and writes a kubeconfig NAME.kubeconfig for it.
func (a *authority) user(name, user string, groups []string, server string) error {
	err := a.issue(name, &x509.Certificate{Subject: pkix.Name{CommonName: user, Organization: groups},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return err
	}
	path := func(file string) string { return filepath.Join(a.folder, file) }
	text := strings.NewReplacer("SERVER", server, "AUTHORITY", path("ca.crt"), "CERT", path(name+".crt"), "KEY", path(name+".key")).Replace(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "SERVER", certificate-authority: "AUTHORITY"}}]
users: [{name: user, user: {client-certificate: "CERT", client-key: "KEY"}}]
contexts: [{name: test, context: {cluster: test, user: user}}]
current-context: test
`)
	return os.WriteFile(path(name+".kubeconfig"), []byte(text), 0o600)
}

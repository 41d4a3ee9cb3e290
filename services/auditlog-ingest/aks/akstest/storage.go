package akstest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Azurite's own account (https://learn.microsoft.com/azure/storage/common/storage-use-azurite).
const (
	azuriteAccount = "devstoreaccount1"
	azuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Account is a storage account: Azurite, in a process of its own, which checks
// signatures, behind a proxy that does on demand what the cloud does now and
// then. Its methods may be called by anyone at any time.
type Account struct {
	t     testing.TB
	real  *azblob.Client
	proxy *httptest.Server

	mu     sync.Mutex
	rnd    *rand.Rand
	faults AccountFaults
	stats  AccountStats
	held   string
}

// AccountFaults are chances from 0 to 1, of each request.
type AccountFaults struct {
	Busy  float64       // 503 ServerBusy
	Deny  float64       // 403 AuthenticationFailed, as with an expired signature
	Cut   float64       // the connection ends in the middle of the answer
	Delay time.Duration // the longest pause before an answer
}

// AccountStats counts what happened.
type AccountStats struct{ Requests, Busy, Denied, Cut int }

// NewAccount starts a storage account until the test ends. It skips the test
// where node or its packages are missing.
func NewAccount(t testing.TB) *Account {
	t.Helper()
	cmd := exec.Command("node", filepath.Join(npm(t), "azurite/dist/src/blob/main.js"),
		"--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--silent", "--disableTelemetry")
	cmd.Dir = t.TempDir()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatalf("start azurite: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to keep
		_ = cmd.Wait()
	})
	var said bytes.Buffer
	var addr string
	lines := bufio.NewScanner(out)
	for addr == "" && lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
		if _, after, ok := strings.Cut(lines.Text(), "listens on http://"); ok {
			addr = strings.TrimSpace(after)
		}
	}
	if addr == "" {
		t.Fatalf("azurite does not start:\n%s", said.Bytes())
	}
	go io.Copy(io.Discard, out) // ends with the process
	a := &Account{t: t, rnd: rand.New(rand.NewPCG(1, 1))}
	if a.real, err = azblob.NewClientFromConnectionString(connection(addr), nil); err != nil {
		t.Fatal(err)
	}
	target := &url.URL{Scheme: "http", Host: addr}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		// A reader that is gone is no trouble of the account's.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	a.proxy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.serve(forward, w, r) }))
	t.Cleanup(a.proxy.Close)
	return a
}

func connection(addr string) string {
	return fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=%s;AccountKey=%s;BlobEndpoint=http://%s/%s;", azuriteAccount, azuriteKey, addr, azuriteAccount)
}

// ConnectionString returns a connection string that goes through the faults.
func (a *Account) ConnectionString() string {
	return connection(strings.TrimPrefix(a.proxy.URL, "http://"))
}

func (a *Account) serve(forward http.Handler, w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	f := a.faults
	busy, deny, cut := a.rnd.Float64() < f.Busy, a.rnd.Float64() < f.Deny, a.rnd.Float64() < f.Cut
	pause := time.Duration(a.rnd.Float64() * float64(f.Delay))
	a.stats.Requests++
	held := a.held != "" && strings.Contains(r.URL.String(), a.held)
	a.mu.Unlock()
	for held && r.Context().Err() == nil {
		time.Sleep(20 * time.Millisecond)
		a.mu.Lock()
		held = a.held != ""
		a.mu.Unlock()
	}
	time.Sleep(pause)
	fail := func(status int, code, text string) {
		w.Header().Set("x-ms-error-code", code)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><Error><Code>%s</Code><Message>%s</Message></Error>`, code, text)
	}
	count := func(n *int) { a.mu.Lock(); *n++; a.mu.Unlock() }
	switch {
	case busy:
		count(&a.stats.Busy)
		fail(http.StatusServiceUnavailable, "ServerBusy", "The server is busy.")
	case deny:
		count(&a.stats.Denied)
		fail(http.StatusForbidden, "AuthenticationFailed", "Server failed to authenticate the request.")
	case cut:
		count(&a.stats.Cut)
		answer := httptest.NewRecorder()
		forward.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	default:
		forward.ServeHTTP(w, r)
	}
}

// SetFaults sets the rates of faults.
func (a *Account) SetFaults(f AccountFaults, seed uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults, a.rnd = f, rand.New(rand.NewPCG(seed, seed))
}

// Hold makes requests whose address has part in it wait; "" lets them go.
func (a *Account) Hold(part string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = part
}

// Stats returns what happened.
func (a *Account) Stats() AccountStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stats
}

// BlobName returns the name of the blob that a resource's records of an hour
// go to.
func BlobName(resource string, hour time.Time) string {
	return "resourceId=" + strings.ToUpper(resource) + hour.UTC().Format("/y=2006/m=01/d=02/h=15/m=00/") + "PT1H.json"
}

// Append appends to a blob, which is made if it is not there, and its container
// too, as diagnostic settings do.
func (a *Account) Append(containerName, name string, text []byte) {
	a.t.Helper()
	ctx := context.Background()
	b := a.real.ServiceClient().NewContainerClient(containerName).NewAppendBlobClient(name)
	for {
		_, err := b.AppendBlock(ctx, streaming.NopCloser(bytes.NewReader(text)), nil)
		switch {
		case err == nil:
			return
		case bloberror.HasCode(err, bloberror.ContainerNotFound):
			_, err = a.real.CreateContainer(ctx, containerName, &container.CreateOptions{})
		case bloberror.HasCode(err, bloberror.BlobNotFound):
			_, err = b.Create(ctx, nil)
		}
		if err != nil && !bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
			a.t.Fatalf("append to %s/%s: %v", containerName, name, err)
		}
	}
}

// Delete deletes a blob, as lifecycle management does.
func (a *Account) Delete(containerName, name string) {
	a.t.Helper()
	if _, err := a.real.DeleteBlob(context.Background(), containerName, name, nil); err != nil {
		a.t.Fatalf("delete %s/%s: %v", containerName, name, err)
	}
}

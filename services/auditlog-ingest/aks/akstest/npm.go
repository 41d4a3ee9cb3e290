package akstest

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

//go:embed npm/package-lock.json
var packageLock []byte

// npm returns the folder of npm packages that scripts/fetch-akstest.sh made. It
// skips the test if it or node is not there.
func npm(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("SKIPPED (needs node; scripts/install.sh test installs it): the AKS sources against a real AMQP server and storage account")
	}
	cache := os.Getenv("PICKET_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("find the cache folder: %v (set PICKET_CACHE)", err)
		}
		cache = filepath.Join(base, "picket")
	}
	sum := sha256.Sum256(packageLock)
	modules := filepath.Join(cache, "akstest", hex.EncodeToString(sum[:6]), "node_modules")
	if _, err := os.Stat(modules); err != nil {
		t.Skip("SKIPPED (needs npm packages; scripts/fetch-akstest.sh fetches them): the AKS sources against a real AMQP server and storage account")
	}
	return modules
}

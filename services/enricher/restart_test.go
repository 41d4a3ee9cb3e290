package enricher

import (
	"fmt"
	"testing"
	"time"

	"picket/schemas"
)

func TestRestartX(t *testing.T) {
	url, b := startNATS(t)
	s := newSender(t, b)
	data := encoded(t, schemas.Process, event{cluster: "test", node: "n"})
	for i := range 3000 {
		s.send("picket.raw.test."+fmt.Sprint("n", i%7)+".process", data, 1)
	}
	_, stop := serve(t, testConfig(url))
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stop took %v, %d pending", time.Since(start), pending(t, b))
	start = time.Now()
	serve(t, testConfig(url))
	eventually(t, "all settled", func() bool { return pending(t, b) == 0 })
	t.Logf("restart until done %v", time.Since(start))
}

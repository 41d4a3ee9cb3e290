package clickhousetest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"picket/internal/clickhousebin/clickhousetest"
)

func TestStart(t *testing.T) {
	s := clickhousetest.Start(t, "")
	answer, err := http.Post(s.URL, "text/plain", strings.NewReader("SELECT 6 * 7"))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "42\n" {
		t.Errorf("%q %v", text, err)
	}
}

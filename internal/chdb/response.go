package chdb

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// errClientGone is the error of writing to a client that does not read.
var errClientGone = errors.New("the client went away")

// response writes the answer to a query. The start of a result is held back,
// so that a query that fails early gets the status of its exception; once the
// headers are out, an exception can only be told in the body.
type response struct {
	w       http.ResponseWriter
	control *http.ResponseController
	req     *request
	dir     string
	stall   time.Duration
	tag     string // marks an exception in the body, unguessable by the data
	head    bool   // the method is HEAD: no body

	held   []byte
	waited *os.File // wait_end_of_query: what did not fit into held
	onDisk int64

	sent bool      // the headers are out
	body io.Writer // through the encodings to the client, once sent
	// enders finish the encodings, outermost last.
	enders []io.Closer
}

func newResponse(w http.ResponseWriter, r *http.Request, h *Handler, req *request) *response {
	return &response{w: w, control: http.NewResponseController(w), req: req, dir: h.dir, stall: h.stall,
		tag: strings.ToLower(rand.Text()[:16]), head: r.Method == http.MethodHead}
}

// setHeader sets a header in ClickHouse's own spelling, which is not the one of
// Go; clients that compare case find it.
func setHeader(w http.ResponseWriter, name, value string) {
	w.Header()[name] = []string{value}
}

// setFormat announces the format of the result.
func (o *response) setFormat(format string) {
	setHeader(o.w, "X-ClickHouse-Format", format)
	o.w.Header().Set("Content-Type", contentType(format))
}

// Write takes a piece of the result.
func (o *response) Write(p []byte) (int, error) {
	switch {
	case o.sent:
		return o.send(p)
	case len(o.held)+len(p) <= o.req.buffer && o.waited == nil:
		o.held = append(o.held, p...)
		return len(p), nil
	case o.req.waitForEnd:
		return o.wait(p)
	}
	if err := o.start(http.StatusOK, false); err != nil {
		return 0, err
	}
	return o.send(p)
}

// wait puts a piece of the result on disk.
func (o *response) wait(p []byte) (int, error) {
	if o.waited == nil {
		f, err := tempFile(o.dir)
		if err != nil {
			return 0, err
		}
		o.waited = f
	}
	if o.onDisk += int64(len(p)); o.onDisk > maxWaited {
		return 0, errTooManyBytes.new("With wait_end_of_query a result may have %d bytes: ask without it", int64(maxWaited))
	}
	n, err := o.waited.Write(p)
	if err != nil {
		return n, fmt.Errorf("hold the result on disk: %w", err)
	}
	return n, nil
}

// start sends the headers and what was held back. An empty body is sent as it
// is, without any encoding: clients tell it by its length.
func (o *response) start(status int, empty bool) error {
	o.sent = true
	header := o.w.Header()
	if status == http.StatusOK {
		setHeader(o.w, "X-ClickHouse-Exception-Tag", o.tag)
	}
	o.body = o.w
	if o.req.encoding != "" && !empty {
		header.Set("Content-Encoding", o.req.encoding)
		header.Add("Vary", "Accept-Encoding")
		encoder := newEncoder(o.req.encoding, o.body)
		o.body, o.enders = encoder, append(o.enders, encoder)
	}
	if o.req.compress && !empty {
		frames := newFrameWriter(o.body, o.req.method)
		o.body, o.enders = frames, append(o.enders, frames)
	}
	o.w.WriteHeader(status)
	held := o.held
	o.held = nil
	if _, err := o.send(held); err != nil {
		return err
	}
	if o.waited != nil {
		if _, err := o.waited.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read the result from disk: %w", err)
		}
		buf := make([]byte, 256<<10)
		for {
			n, err := o.waited.Read(buf)
			if n > 0 {
				if _, err := o.send(buf[:n]); err != nil {
					return err
				}
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read the result from disk: %w", err)
			}
		}
	}
	return nil
}

// send writes to the client.
func (o *response) send(p []byte) (int, error) {
	if o.head || len(p) == 0 {
		return len(p), nil
	}
	_ = o.control.SetWriteDeadline(time.Now().Add(o.stall)) // a transport without deadlines has its own
	n, err := o.body.Write(p)
	if err != nil {
		return n, fmt.Errorf("%w: %w", errClientGone, err)
	}
	return n, nil
}

// finish ends a result that is complete.
func (o *response) finish(s Stats, elapsed time.Duration) error {
	if !o.sent {
		setHeader(o.w, "X-ClickHouse-Summary", summary(s, elapsed))
		if err := o.start(http.StatusOK, len(o.held) == 0 && o.waited == nil); err != nil {
			return err
		}
	}
	return o.end()
}

// end completes the encodings.
func (o *response) end() error {
	for i := len(o.enders) - 1; i >= 0; i-- {
		if err := o.enders[i].Close(); err != nil {
			return fmt.Errorf("%w: %w", errClientGone, err)
		}
	}
	o.enders = nil
	return nil
}

// fail ends the response with an exception: with its status if nothing was
// sent, else as a block in the body, and then the connection is cut, so that
// no client takes the result for complete.
func (o *response) fail(e *Exception, text string) {
	if !o.sent {
		o.held = []byte(text)
		o.dropWaited()
		header := o.w.Header()
		setHeader(o.w, "X-ClickHouse-Exception-Code", strconv.Itoa(e.Code))
		header.Set("Content-Type", "text/plain; charset=UTF-8")
		delete(header, "X-ClickHouse-Format")
		if e.status() == http.StatusUnauthorized {
			header.Set("WWW-Authenticate", `Basic realm="ClickHouse server HTTP API"`)
		}
		if o.start(e.status(), false) == nil {
			_ = o.end() // a client that went away needs no answer
		}
		return
	}
	const limit = 16 << 10 // clients look for a block of at most this size
	if len(text) > limit-256 {
		text = text[:limit-256] + "\n"
	}
	block := fmt.Sprintf("\r\n__exception__\r\n%s\r\n%s%d %s\r\n__exception__\r\n", o.tag, text, len(text), o.tag)
	if _, err := o.send([]byte(block)); err == nil && o.end() == nil {
		_ = o.control.Flush()
	}
	panic(http.ErrAbortHandler)
}

func (o *response) dropWaited() {
	if o.waited != nil {
		o.waited.Close() // it has no name: this removes it
		o.waited, o.onDisk = nil, 0
	}
}

// close gives free what the response holds.
func (o *response) close() { o.dropWaited() }

// summary is the text of X-ClickHouse-Summary.
func summary(s Stats, elapsed time.Duration) string {
	return fmt.Sprintf(`{"read_rows":"%d","read_bytes":"%d","written_rows":"%d","written_bytes":"%d","total_rows_to_read":"0","result_rows":"%d","result_bytes":"%d","elapsed_ns":"%d"}`,
		s.ReadRows, s.ReadBytes, s.WrittenRows, s.WrittenBytes, s.ResultRows, s.ResultBytes, elapsed.Nanoseconds())
}

// contentType is what ClickHouse calls a format in Content-Type.
func contentType(format string) string {
	name := strings.ToLower(format)
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.HasPrefix(name, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("tabseparatedraw", "tsvraw", "tabseparated", "tsv"):
		return "text/tab-separated-values; charset=UTF-8"
	case has("csvwithnames"):
		return "text/csv; charset=UTF-8; header=present"
	case has("csv"):
		return "text/csv; charset=UTF-8; header=absent"
	case has("jsoneachrow", "jsonlines", "ndjson", "jsonstringseachrow", "jsoncompacteachrow", "jsoncompactstringseachrow"):
		return "application/x-ndjson; charset=UTF-8"
	case has("json"):
		return "application/json; charset=UTF-8"
	case has("xml"):
		return "application/xml; charset=UTF-8"
	case has("markdown"):
		return "text/markdown; charset=UTF-8"
	case has("pretty", "vertical", "values", "template", "null", "customseparated", "sqlinsert", "prometheus", "tskv", "hash"):
		return "text/plain; charset=UTF-8"
	default:
		return "application/octet-stream"
	}
}

package chdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// HandlerOptions bound what the HTTP interface takes at a time.
type HandlerOptions struct {
	// MaxBody bounds the body of a request, in bytes after decompression;
	// default 256 MiB.
	MaxBody int64
	// MaxQueries is how many queries run at a time; more wait. Default 16.
	MaxQueries int
	// QueueTimeout is how long a query waits for its turn before it is refused
	// (code 202, TOO_MANY_SIMULTANEOUS_QUERIES); default 30 s.
	QueueTimeout time.Duration
}

const (
	// maxStatement bounds the text of a statement without the data of an
	// INSERT, in bytes. The engine's max_query_size (256 KiB) comes first for
	// most statements.
	maxStatement = 16 << 20
	// responseBuffer is how much of a result is held back before the headers
	// are sent: up to here a query that fails gets its own status.
	responseBuffer = 1 << 20
	// maxResponseBuffer bounds buffer_size.
	maxResponseBuffer = 16 << 20
	// maxWaited bounds a result that wait_end_of_query holds on disk.
	maxWaited = 4 << 30
	// defaultStall is how long a client may stand still while it sends or
	// receives.
	defaultStall = 5 * time.Minute
)

// Handler is ClickHouse's HTTP interface in front of an engine. Safe for
// concurrent use.
type Handler struct {
	engine *Engine
	log    *slog.Logger
	opt    HandlerOptions
	dir    string        // temporary files: bodies of inserts, results that wait
	slots  chan struct{} // one element for each query that runs
	// stall is how long a client may stand still while it sends or receives.
	stall time.Duration
}

// NewHandler serves an engine. Its temporary files are in the engine's data
// folder.
func NewHandler(e *Engine, log *slog.Logger, o HandlerOptions) *Handler {
	if o.MaxBody <= 0 {
		o.MaxBody = 256 << 20
	}
	if o.MaxQueries <= 0 {
		o.MaxQueries = 16
	}
	if o.QueueTimeout <= 0 {
		o.QueueTimeout = 30 * time.Second
	}
	return &Handler{engine: e, log: log, opt: o, dir: e.temp, slots: make(chan struct{}, o.MaxQueries), stall: defaultStall}
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeader(w, "X-ClickHouse-Server-Display-Name", h.engine.displayName)
	switch r.URL.Path {
	case "/ping", "/replicas_status":
		w.Header().Set("Content-Type", "text/html; charset=UTF-8")
		_, _ = io.WriteString(w, "Ok.\n")
		return
	case "/", "":
	default:
		w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprintf(w, "There is no handle %s\n\nUse / or /ping for health checks.\nSend queries from your program with POST method or GET /?query=...\n", r.URL.Path)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if !r.URL.Query().Has("query") {
			w.Header().Set("Content-Type", "text/html; charset=UTF-8")
			_, _ = io.WriteString(w, "Ok.\n")
			return
		}
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "Use POST, or GET for queries that change nothing", http.StatusMethodNotAllowed)
		return
	}
	h.serveQuery(w, r)
}

// request is what the URL and the headers of a request say.
type request struct {
	sql      string // of the URL
	query    Query
	id       string
	revision uint64 // client_protocol_version

	waitForEnd bool
	buffer     int

	compress, decompress bool // ClickHouse's own framing
	method               compress.Method
	encoding             string // of the response, for HTTP
}

func (h *Handler) serveQuery(w http.ResponseWriter, r *http.Request) {
	req, err := parseRequest(r)
	out := newResponse(w, r, h, req)
	defer out.close()
	setHeader(w, "X-ClickHouse-Query-Id", req.id)
	setHeader(w, "X-ClickHouse-Timezone", h.engine.timezone)
	if err == nil {
		err = h.runQuery(r, req, out)
	}
	if err != nil {
		h.fail(out, r, err)
	}
}

// fail answers with an exception.
func (h *Handler) fail(out *response, r *http.Request, err error) {
	var exception *Exception
	if !errors.As(err, &exception) {
		// Not the engine's: the disk, or a client that went away.
		if r.Context().Err() == nil && !errors.Is(err, errClientGone) {
			h.log.Error("request failed", "error", err)
		}
		exception = errUnknownEngineError.new("%v", err)
	}
	out.fail(exception, exception.body(h.engine.version))
}

// parseRequest reads all parameters. The request it returns beside an error
// has what is needed to answer with that error.
func parseRequest(r *http.Request) (*request, error) {
	req := &request{
		query:  Query{Format: "TabSeparated", Database: r.Header.Get("X-ClickHouse-Database")},
		id:     r.Header.Get("X-ClickHouse-Query-Id"),
		method: compress.LZ4,
		buffer: responseBuffer,
	}
	if f := r.Header.Get("X-ClickHouse-Format"); f != "" {
		req.query.Format = f
	}
	httpCompression := true
	var failed error
	for name, values := range r.URL.Query() {
		value := values[len(values)-1]
		switch name {
		case "query":
			req.sql = strings.Join(values, "")
		case "database":
			req.query.Database = value
		case "default_format":
			req.query.Format = value
		case "query_id":
			req.id = value
		case "compress":
			req.compress = isTrue(value)
		case "decompress":
			req.decompress = isTrue(value)
		case "wait_end_of_query":
			req.waitForEnd = isTrue(value)
		case "buffer_size":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				failed = errBadArguments.new("buffer_size is %s, and has to be a number of bytes", value)
				continue
			}
			req.buffer = min(max(n, responseBuffer), maxResponseBuffer)
		case "client_protocol_version":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				failed = errBadArguments.new("client_protocol_version is %s, and has to be a number", value)
				continue
			}
			req.revision = min(n, proto.DBMS_TCP_PROTOCOL_VERSION)
		case "session_id":
			failed = errNotImplemented.new("Sessions (session_id) are not implemented by picket-clickhouse: send settings as URL parameters, and what belongs together in one statement")
		case "user", "password", "quota_key", "role", "stacktrace", "session_timeout", "session_check", "close_session":
			// There is one user, who needs no password.
		default:
			if param, ok := strings.CutPrefix(name, "param_"); ok {
				req.query.Params = append(req.query.Params, Param{param, value})
				continue
			}
			switch name {
			case "enable_http_compression":
				httpCompression = isTrue(value)
			case "network_compression_method":
				switch strings.ToUpper(value) {
				case "ZSTD":
					req.method = compress.ZSTD
				case "NONE":
					req.method = compress.None
				}
			}
			req.query.Settings = append(req.query.Settings, Setting{name, value})
		}
	}
	if !isFormatName(req.query.Format) && failed == nil {
		failed = errUnknownFormat.new("Unknown format %s", req.query.Format)
	}
	// Their order in a URL means nothing, except that readonly forbids what
	// comes after it.
	slices.SortFunc(req.query.Settings, func(a, b Setting) int {
		if (a.Name == "readonly") != (b.Name == "readonly") {
			return map[bool]int{true: 1, false: -1}[a.Name == "readonly"]
		}
		return strings.Compare(a.Name, b.Name)
	})
	if r.Method != http.MethodPost && !slices.ContainsFunc(req.query.Settings, func(s Setting) bool { return s.Name == "readonly" && s.Value != "0" }) {
		req.query.Settings = append(req.query.Settings, Setting{"readonly", "2"})
	}
	if req.id == "" {
		req.id = uuid.NewString()
	}
	if httpCompression {
		req.encoding = chooseEncoding(r.Header.Get("Accept-Encoding"))
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") && failed == nil {
		failed = errNotImplemented.new("External tables (multipart/form-data) are not implemented by picket-clickhouse: send the data in the statement")
	}
	return req, failed
}

// isFormatName keeps what is not a name out of the statement.
func isFormatName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f || !isWordByte(byte(r)) })
}

func isTrue(value string) bool { return value == "1" || strings.EqualFold(value, "true") }

// runQuery runs the query of a request and writes its result.
func (h *Handler) runQuery(r *http.Request, req *request, out *response) error {
	ctx := r.Context()
	body, closeBody, err := h.body(out, r, req)
	if err != nil {
		return err
	}
	defer closeBody()

	text, s, err := readStatement(req.sql, body)
	if err != nil {
		return err
	}
	format := s.format
	if format == "" {
		format = req.query.Format
	}

	// The whole body is there before a query takes its turn, so that a slow
	// client holds up nobody.
	var data string
	if s.kind == kindInsert {
		if data, err = h.saveData(text[s.dataStart:], body); err != nil {
			return err
		}
		defer os.Remove(data)
	}
	if err := h.take(ctx); err != nil {
		return err
	}
	defer func() { <-h.slots }()

	start := time.Now()
	query := req.query
	switch s.kind {
	case kindSelect:
		if err := h.stream(ctx, req, s, format, out, start); !errors.Is(err, errRunWhole) {
			return err
		}
		query.SQL = s.text
	case kindInsert:
		query.SQL = s.body + " FROM INFILE " + quote(data) + " COMPRESSION 'none'" + s.tail + " FORMAT " + s.format
		// The file lives as long as this call: an insert that the client left
		// is not interrupted, it cannot know how far it came.
		ctx = context.WithoutCancel(ctx)
	default:
		query.SQL = s.text
	}
	result, stats, err := h.engine.Query(ctx, query)
	if err != nil {
		if s.kind == kindInsert {
			err = hidePath(err, data)
		}
		return err
	}
	if len(result) > 0 {
		out.setFormat(format)
	}
	if err := req.copyResult(out, bytes.NewReader(result), format); err != nil {
		return err
	}
	return out.finish(stats, time.Since(start))
}

// copyResult copies a result as the engine writes it to what the client reads.
func (req *request) copyResult(out *response, result io.Reader, format string) error {
	if req.revision > 0 && strings.EqualFold(format, "Native") {
		return reviseNative(out, result, req.revision)
	}
	_, err := io.Copy(out, result)
	return err
}

// errRunWhole says that a SELECT could not be streamed, and that nothing of it
// was run.
var errRunWhole = errors.New("run the statement as it is")

// take waits for the query's turn.
func (h *Handler) take(ctx context.Context) error {
	timeout := time.NewTimer(h.opt.QueueTimeout)
	defer timeout.Stop()
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errClientGone
	case <-timeout.C:
		return errTooManyQueries.new("Too many simultaneous queries. Maximum: %d, and none of them ended in %v", h.opt.MaxQueries, h.opt.QueueTimeout)
	}
}

// stream runs a SELECT. The engine writes the formatted result to a pipe of
// this process, as it would INTO OUTFILE, and from there it goes to the client.
func (h *Handler) stream(ctx context.Context, req *request, s statement, format string, out *response, start time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer read.Close()
	defer write.Close()
	// Fewer, larger steps; without the right to it the default stays.
	_, _ = unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, 1<<20)

	query := req.query
	query.SQL = fmt.Sprintf("%s INTO OUTFILE '/proc/self/fd/%d' TRUNCATE FORMAT %s%s", s.body, write.Fd(), format, s.tail)
	out.setFormat(format)

	copied := make(chan error, 1)
	go func() {
		err := req.copyResult(out, read, format)
		if err != nil {
			cancel()
		}
		// The engine must not wait for a reader that has stopped.
		_, _ = io.Copy(io.Discard, read)
		copied <- err
	}()
	_, stats, queryErr := h.engine.Query(ctx, query)
	write.Close()
	copyErr := <-copied
	if e := new(Exception); errors.As(queryErr, &e) && e.Code == errSyntax.code && !out.sent {
		// The engine's words shall be about the statement as it was sent. And
		// should our reading of it have been wrong, this is the right answer.
		return errRunWhole
	}
	switch {
	case copyErr != nil && !errors.Is(copyErr, io.ErrUnexpectedEOF):
		return copyErr // the query was killed for it
	case queryErr != nil:
		return queryErr
	case copyErr != nil:
		return copyErr
	}
	return out.finish(stats, time.Since(start))
}

// readStatement puts the text of the URL and the start of the body together,
// and parses the statement. The rest of the body stays unread.
func readStatement(sql string, body io.Reader) ([]byte, statement, error) {
	var text []byte
	if sql != "" {
		text = append([]byte(sql), '\n')
		// The usual INSERT has its statement in the URL, its data in the body.
		if s, err := parseStatement(text); err == nil && s.kind == kindInsert {
			return text, s, nil
		}
	}
	for limit := 1 << 20; ; limit = maxStatement {
		more, err := io.ReadAll(io.LimitReader(body, int64(limit-len(text)+1)))
		if err != nil {
			return nil, statement{}, err
		}
		text = append(text, more...)
		s, err := parseStatement(text)
		switch {
		case err == nil && s.kind == kindInsert && s.dataStart < limit, len(text) <= limit:
			if err == nil && s.text == "" {
				err = errSyntax.new("Syntax error: failed at position 1 (end of query): Empty query")
			}
			return text, s, err
		case limit == maxStatement:
			return nil, statement{}, errSyntax.new("Syntax error: Max query size exceeded: a statement may have %d bytes", maxStatement)
		}
	}
}

// saveData writes the data of an INSERT to a file and returns its path.
func (h *Handler) saveData(head []byte, rest io.Reader) (_ string, err error) {
	f, err := os.CreateTemp(h.dir, "insert-*")
	if err != nil {
		return "", fmt.Errorf("make a temporary file for the data: %w", err)
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(head); err != nil {
		return "", fmt.Errorf("save the data: %w", err)
	}
	if _, err := io.Copy(f, rest); err != nil {
		return "", err
	}
	return f.Name(), nil
}

// hidePath takes the name of the temporary file out of an exception.
func hidePath(err error, path string) error {
	var exception *Exception
	if !errors.As(err, &exception) {
		return err
	}
	return &Exception{exception.Code, strings.ReplaceAll(exception.Text, path, "the request body")}
}

// limitedBody refuses a body that is too long, instead of cutting it.
type limitedBody struct {
	src   io.Reader
	left  int64
	limit int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.src.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errQueryTooLarge.new("The body of the request is larger than the limit of %d bytes: send smaller batches, or start picket-clickhouse with a larger --max-body", b.limit)
	}
	return n, err
}

// networkBody reads from the client, with a deadline that moves along. Once
// the body has ended it sets no more: from then on the client may wait as long
// as it likes.
type networkBody struct {
	src     io.Reader
	control *http.ResponseController
	stall   time.Duration
	ended   error
}

func (b *networkBody) Read(p []byte) (int, error) {
	if b.ended != nil {
		return 0, b.ended
	}
	_ = b.control.SetReadDeadline(time.Now().Add(b.stall)) // a transport without deadlines has its own
	n, err := b.src.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = errCannotReadAllData.new("The body of the request did not arrive whole: %v", err)
	}
	b.ended = err
	return n, err
}

// body returns the decoded body of a request.
func (h *Handler) body(out *response, r *http.Request, req *request) (_ io.Reader, closeAll func(), err error) {
	var closers []io.Closer
	closeAll = func() {
		for _, c := range slices.Backward(closers) {
			if err := c.Close(); err != nil {
				h.log.Warn("closing a request body", "error", err)
			}
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	if r.Body == nil || r.Method != http.MethodPost {
		return strings.NewReader(""), closeAll, nil
	}
	// A compressed body is longer than its data by little at most.
	body := io.Reader(&limitedBody{&networkBody{src: r.Body, control: out.control, stall: h.stall}, h.opt.MaxBody + h.opt.MaxBody/8, h.opt.MaxBody})
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		decoder, err := newDecoder(encoding, body)
		if err != nil {
			return nil, closeAll, err
		}
		closers = append(closers, decoder)
		body = decoder
	}
	if req.decompress {
		frames := &frameReader{src: body, dir: h.dir, limit: int(h.opt.MaxBody + h.opt.MaxBody/8)}
		closers = append(closers, frames)
		body = frames
	}
	return &limitedBody{body, h.opt.MaxBody, h.opt.MaxBody}, closeAll, nil
}

package chdb

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/andybalholm/brotli"
)

// codec is a Content-Encoding of HTTP. ClickHouse's «deflate» is zlib's.
type codec struct {
	name   string
	reader func(io.Reader) (io.ReadCloser, error)
	writer func(io.Writer) io.WriteCloser
}

// codecs in the order of preference when a client accepts several.
var codecs = []codec{
	{"gzip",
		func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) },
		func(w io.Writer) io.WriteCloser {
			z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is a valid one
			return z
		}},
	{"br",
		func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(brotli.NewReader(r)), nil },
		func(w io.Writer) io.WriteCloser { return brotli.NewWriterLevel(w, brotli.BestSpeed) }},
	{"deflate",
		func(r io.Reader) (io.ReadCloser, error) { return zlib.NewReader(r) },
		func(w io.Writer) io.WriteCloser {
			z, _ := zlib.NewWriterLevel(w, zlib.BestSpeed) // the level is a valid one
			return z
		}},
}

// chooseEncoding picks the encoding of a response from Accept-Encoding; empty
// means none.
func chooseEncoding(accept string) string {
	accepted := map[string]bool{}
	for item := range strings.SplitSeq(accept, ",") {
		name, parameter, _ := strings.Cut(item, ";")
		weight := 1.0
		if q, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q="); ok {
			weight, _ = strconv.ParseFloat(q, 64) // what is no number refuses
		}
		accepted[strings.ToLower(strings.TrimSpace(name))] = weight > 0
	}
	for _, c := range codecs {
		if accepted[c.name] {
			return c.name
		}
	}
	return ""
}

// newDecoder reads a body of this Content-Encoding.
func newDecoder(encoding string, body io.Reader) (io.ReadCloser, error) {
	for _, c := range codecs {
		if strings.EqualFold(encoding, c.name) {
			r, err := c.reader(body)
			if err != nil {
				return nil, decodeError(encoding, err)
			}
			return decoder{r, encoding}, nil
		}
	}
	return nil, errNotImplemented.new("The Content-Encoding %q is not implemented: use gzip, br or deflate", encoding)
}

// decoder names its encoding in errors.
type decoder struct {
	io.ReadCloser
	encoding string
}

func (d decoder) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = decodeError(d.encoding, err)
	}
	return n, err
}

func decodeError(encoding string, err error) error {
	var exception *Exception
	if errors.As(err, &exception) {
		return exception
	}
	return errCannotDecompress.new("The body is not valid %s: %v", encoding, err)
}

// newEncoder writes a body of this encoding, which is one of codecs.
func newEncoder(encoding string, w io.Writer) io.WriteCloser {
	for _, c := range codecs {
		if c.name == encoding {
			return c.writer(w)
		}
	}
	return nil
}

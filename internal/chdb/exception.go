package chdb

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Exception is a ClickHouse error, raised by the engine or by the HTTP
// interface in front of it.
type Exception struct {
	Code int    // ClickHouse's number of the error, e.g. 60
	Text string // the complete text: "Code: 60. DB::Exception: … (UNKNOWN_TABLE)"
}

// Error returns the complete text.
func (e *Exception) Error() string { return e.Text }

// errorKind is one of ClickHouse's numbered errors.
type errorKind struct {
	code int
	name string
}

// The errors this package raises itself.
var (
	errBadArguments       = errorKind{36, "BAD_ARGUMENTS"}
	errCannotReadAllData  = errorKind{33, "CANNOT_READ_ALL_DATA"}
	errNotImplemented     = errorKind{48, "NOT_IMPLEMENTED"}
	errUnknownType        = errorKind{50, "UNKNOWN_TYPE"}
	errSyntax             = errorKind{62, "SYNTAX_ERROR"}
	errUnknownFormat      = errorKind{73, "UNKNOWN_FORMAT"}
	errUnknownQueryType   = errorKind{78, "UNKNOWN_TYPE_OF_QUERY"}
	errTooManyQueries     = errorKind{202, "TOO_MANY_SIMULTANEOUS_QUERIES"}
	errQueryTooLarge      = errorKind{229, "QUERY_IS_TOO_LARGE"}
	errCannotDecompress   = errorKind{271, "CANNOT_DECOMPRESS"}
	errOutfileNotAllowed  = errorKind{358, "INTO_OUTFILE_NOT_ALLOWED"}
	errTooManyBytes       = errorKind{396, "TOO_MANY_ROWS_OR_BYTES"}
	errUnknownEngineError = errorKind{1002, "UNKNOWN_EXCEPTION"}
)

// new makes an exception of the kind, with the text ClickHouse would give it.
func (k errorKind) new(format string, args ...any) *Exception {
	return &Exception{k.code, fmt.Sprintf("Code: %d. DB::Exception: %s. (%s)", k.code, fmt.Sprintf(format, args...), k.name)}
}

var (
	codePrefix    = regexp.MustCompile(`^Code: (\d+)\. DB::(?:\w+)?Exception: `)
	versionSuffix = regexp.MustCompile(` \(version [^()]*(?:\([^()]*\))?\)$`)
)

// parseException reads an exception text of libchdb. Errors that pass several
// layers of the library are wrapped once per layer in the same prefix and
// suffix; one of each is kept.
func parseException(text string) *Exception {
	text = strings.TrimSpace(text)
	m := codePrefix.FindStringSubmatch(text)
	if m == nil {
		return errUnknownEngineError.new("%s", text)
	}
	code, err := strconv.Atoi(m[1])
	if err != nil {
		return errUnknownEngineError.new("%s", text)
	}
	prefix := m[0]
	body := text[len(prefix):]
	for {
		inner, found := strings.CutPrefix(body, prefix)
		if !found {
			break
		}
		body = inner
	}
	body = versionSuffix.ReplaceAllString(body, "")
	if i := strings.LastIndex(body, " ("); i >= 0 && strings.HasSuffix(body, ")") {
		name := body[i:] // as in " (UNKNOWN_TABLE)"
		for {
			inner := versionSuffix.ReplaceAllString(strings.TrimSuffix(strings.TrimSuffix(body, name), "."), "")
			if !strings.HasSuffix(inner, name) {
				break
			}
			body = inner
		}
	}
	return &Exception{code, prefix + body}
}

// status is the HTTP status ClickHouse answers an exception with.
func (e *Exception) status() int {
	switch e.Code {
	case 194: // REQUIRED_PASSWORD
		return http.StatusUnauthorized
	case 192, 193, 497, 512, 516: // unknown user, wrong password, access denied, role not granted, authentication failed
		return http.StatusForbidden
	case 6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 44, 53, 62, 72, 117, 123, 167, 168, 223, 321, 376, 427, 441, 675, 676:
		// what the client sent does not parse, or does not fit the columns
		return http.StatusBadRequest
	case 46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 511: // UNKNOWN_…
		return http.StatusNotFound
	case 229: // QUERY_IS_TOO_LARGE
		return http.StatusRequestEntityTooLarge
	case 48: // NOT_IMPLEMENTED
		return http.StatusNotImplemented
	case 76, 209, 439: // CANNOT_OPEN_FILE, SOCKET_TIMEOUT, CANNOT_SCHEDULE_TASK
		return http.StatusServiceUnavailable
	case 381: // HTTP_LENGTH_REQUIRED
		return http.StatusLengthRequired
	case 159: // TIMEOUT_EXCEEDED
		return http.StatusRequestTimeout
	default:
		return http.StatusInternalServerError
	}
}

// body is the text a client gets: the exception and the server's version.
func (e *Exception) body(version string) string {
	return e.Text + " (version " + version + ")\n"
}

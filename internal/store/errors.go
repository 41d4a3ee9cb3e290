package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Kind says what can be done about a failed statement.
type Kind uint8

// The kinds of failure.
const (
	// Away: no answer, or none from ClickHouse. Whether the statement was
	// carried out is unknown. Try again.
	Away Kind = iota
	// Busy: the server refused for now (memory, too many parts, timeouts,
	// read-only, …). Try again.
	Busy
	// Setup: tables, columns, rights or addresses are not as Picket needs
	// them. Trying again helps only after somebody has acted.
	Setup
	// Data: the server refuses these rows and always will.
	Data
)

// Error is a failed statement. Its text is one sentence with the remedy.
type Error struct {
	Kind Kind
	// Code is ClickHouse's exception code; 0 when it gave none.
	Code int32
	text string
	err  error
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.err }

// Label is the error as a metric label: the exception code, or "network",
// "timeout" or "http".
func (e *Error) Label() string {
	if e.Code != 0 {
		return strconv.Itoa(int(e.Code))
	}
	var h *clickhouse.HTTPError
	switch {
	case errors.Is(e.err, context.DeadlineExceeded), isTimeout(e.err):
		return "timeout"
	case errors.As(e.err, &h):
		return "http"
	}
	return "network"
}

// cause strips what the client wraps around a failed request: its whole URL.
func cause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// codes tells the exceptions that are not Busy. The numbers are ClickHouse's
// (src/Common/ErrorCodes.cpp) and never change.
var codes = map[int32]Kind{
	// What is missing or not allowed: somebody must act.
	8:   Setup, // THERE_IS_NO_COLUMN
	10:  Setup, // NOT_FOUND_COLUMN_IN_BLOCK
	16:  Setup, // NO_SUCH_COLUMN_IN_TABLE
	47:  Setup, // UNKNOWN_IDENTIFIER
	60:  Setup, // UNKNOWN_TABLE
	81:  Setup, // UNKNOWN_DATABASE
	115: Setup, // UNKNOWN_SETTING
	164: Setup, // READONLY: the user's profile
	192: Setup, // UNKNOWN_USER
	193: Setup, // WRONG_PASSWORD
	194: Setup, // REQUIRED_PASSWORD
	452: Setup, // SETTING_CONSTRAINT_VIOLATION
	497: Setup, // ACCESS_DENIED
	516: Setup, // AUTHENTICATION_FAILED
	// What no repetition mends.
	6:   Data, // CANNOT_PARSE_TEXT
	26:  Data, // CANNOT_PARSE_QUOTED_STRING
	27:  Data, // CANNOT_PARSE_INPUT_ASSERTION_FAILED
	38:  Data, // CANNOT_PARSE_DATE
	41:  Data, // CANNOT_PARSE_DATETIME
	43:  Data, // ILLEGAL_TYPE_OF_ARGUMENT
	53:  Data, // TYPE_MISMATCH
	69:  Data, // ARGUMENT_OUT_OF_BOUND
	70:  Data, // CANNOT_CONVERT_TYPE
	72:  Data, // CANNOT_PARSE_NUMBER
	117: Data, // INCORRECT_DATA
	128: Data, // TOO_LARGE_ARRAY_SIZE
	131: Data, // TOO_LARGE_STRING_SIZE
	349: Data, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
	407: Data, // DECIMAL_OVERFLOW
	441: Data, // CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
	469: Data, // VIOLATED_CONSTRAINT
}

var remedies = map[int32]string{
	8: migrate, 10: migrate, 16: migrate, 47: migrate, 60: migrate, 81: migrate,
	192: credentials, 193: credentials, 194: credentials, 516: credentials,
	164: rights, 452: rights, 497: rights,
	241: "give the ClickHouse server more memory if this goes on",
	243: "make room on the ClickHouse server's disk",
	252: "the ClickHouse server is merging more slowly than it is written to",
}

const (
	migrate     = "if it is of Picket's tables, run `picket migrate`"
	credentials = "check clickhouse.username and clickhouse.password_file"
	rights      = "give the user of clickhouse.username the rights it needs"
)

// explain turns the client's error into an *Error. nil stays nil, the end of
// the caller's own context stays itself.
func explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var mine *Error
	if errors.As(err, &mine) {
		return err
	}
	e := &Error{Kind: Away, err: err}
	var x *clickhouse.Exception
	var h *clickhouse.HTTPError
	switch {
	case errors.As(err, &x):
		e.Code = x.Code
		kind, known := codes[x.Code]
		if e.Kind = Busy; known {
			e.Kind = kind
		}
		e.text = "ClickHouse refuses: " + sentence(x.Message)
		if r := remedies[x.Code]; r != "" {
			e.text += ": " + r
		}
	case errors.As(err, &h):
		e.text = fmt.Sprintf("something that is not ClickHouse answers with HTTP status %d: check clickhouse.url, which must be ClickHouse's HTTP interface (port 8123 by default)", h.StatusCode)
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		e.text = "ClickHouse does not answer in time: check clickhouse.url, and clickhouse.insert_timeout if it is only slow"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.text = "ClickHouse closed the connection before it answered"
	default:
		e.text = "ClickHouse does not answer: " + oneLine(cause(err).Error()) + ": check clickhouse.url"
	}
	return e
}

var version = regexp.MustCompile(`\s*\(version [^)]*(\([^)]*\))?[^)]*\)\s*$`)

// sentence shortens an exception's text: without the server's version, on one
// line.
func sentence(s string) string { return oneLine(version.ReplaceAllString(s, "")) }

func oneLine(s string) string {
	const most = 1000
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

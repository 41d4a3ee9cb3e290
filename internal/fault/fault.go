// Package fault tells permanent failures from transient ones. A failure is
// judged once, where it enters (a decoder, a server's answer); everything
// above only asks.
package fault

import "errors"

// permanent marks an error that the same input will give again.
type permanent struct {
	error
	reason string
}

func (p permanent) Unwrap() error { return p.error }

// Permanent marks err as one that no retry mends: the input is set aside on
// the dead-letter stream under reason, a short constant such as "decode" that
// is safe as a metric label. A nil err stays nil.
func Permanent(reason string, err error) error {
	if err == nil {
		return nil
	}
	return permanent{err, reason}
}

// IsPermanent reports whether err, or an error it wraps, was marked by
// Permanent. Everything else is transient: delay and try again.
func IsPermanent(err error) bool {
	_, ok := errors.AsType[permanent](err)
	return ok
}

// Reason returns the reason given to Permanent, or "transient".
func Reason(err error) string {
	if p, ok := errors.AsType[permanent](err); ok {
		return p.reason
	}
	return "transient"
}

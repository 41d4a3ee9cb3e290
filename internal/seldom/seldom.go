// Package seldom keeps what is repeated from filling a log: what a message, a
// record or a file can cause is logged once in a while, with how often it was.
package seldom

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Interval is how long a line keeps its like from being written.
const Interval = 10 * time.Second

// Logger writes each line, which is known by its message, at most once in
// Interval. Messages are constants of the program: that bounds how many are
// remembered. It is safe for concurrent use. How often a line was left out is in
// the next one alone: losses have metrics.
type Logger struct {
	log   *slog.Logger
	mu    sync.Mutex
	lines map[string]*line
}

type line struct {
	last time.Time
	more uint64 // not written since
}

// New returns a Logger that writes to log.
func New(log *slog.Logger) *Logger { return &Logger{log: log, lines: map[string]*line{}} }

// Warn logs a warning, if none with this message was logged for Interval. The
// attribute "left_out" is how many were not since the one before.
func (l *Logger) Warn(msg string, args ...any) { l.at(time.Now(), slog.LevelWarn, msg, args...) }

// Error is Warn for an error.
func (l *Logger) Error(msg string, args ...any) { l.at(time.Now(), slog.LevelError, msg, args...) }

func (l *Logger) at(now time.Time, level slog.Level, msg string, args ...any) {
	l.mu.Lock()
	at, again := l.lines[msg]
	if again && now.Sub(at.last) < Interval {
		at.more++
		l.mu.Unlock()
		return
	}
	if !again {
		at = new(line)
		l.lines[msg] = at
	}
	more := at.more
	*at = line{last: now}
	l.mu.Unlock()
	if more > 0 {
		args = append(args[:len(args):len(args)], "left_out", more)
	}
	l.log.Log(context.Background(), level, msg, args...)
}

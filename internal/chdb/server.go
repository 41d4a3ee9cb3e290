package chdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// stopTimeout is how long Serve lets running queries finish.
	stopTimeout = 15 * time.Second
	// killTimeout is how long those then get to end that are killed.
	killTimeout = 10 * time.Second
)

// Serve opens an engine and serves its HTTP interface on an address until ctx
// ends, then lets running queries finish and stops the engine. It returns nil
// after a clean stop.
//
// There is one user, who needs no password: whoever can connect to the address
// can read and change everything in the engine, so it should be a loopback one.
func Serve(ctx context.Context, log *slog.Logger, listen string, eo Options, ho HandlerOptions) (err error) {
	began := time.Now()
	// The address first: it fails fast, and clients that come early wait in
	// its queue instead of being refused.
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w: choose another address with --listen", listen, err)
	}
	defer listener.Close()
	engine, err := Open(eo)
	if err != nil {
		return err
	}
	closeEngine := func() error {
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return engine.Close(wait)
	}
	// Requests end with their client or when stopTimeout is over, not with ctx.
	requests, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	server := &http.Server{
		Handler:           NewHandler(engine, log, ho),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxStatement, // statements may stand in the URL
		BaseContext:       func(net.Listener) context.Context { return requests },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(listener) }()
	log.Info("ready", "url", "http://"+listener.Addr().String(), "version", engine.Version(), "data", engine.data, "took", time.Since(began).Round(time.Millisecond))

	select {
	case err := <-stopped:
		return errors.Join(fmt.Errorf("serve HTTP: %w", err), closeEngine())
	case <-ctx.Done():
	}
	log.Info("stopping")
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(wait); err != nil {
		log.Warn("queries are killed", "after", stopTimeout)
		cancelRequests()
		_ = server.Close() // its error is that of the listener, closed already
	}
	<-stopped
	if err := closeEngine(); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// Command node has the Kubernetes clusters of test/cluster by hand.
//
//	go run ./test/node build   builds the Kubernetes programs into the cache, once
//	go run ./test/node up      runs a cluster of one node until Ctrl-C
//	go run ./test/node work    runs one that starts, has some pods with health checks and ends: ordinary work to record
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"picket/test/cluster"
)

func main() {
	cluster.Serve()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 {
		switch args[0] {
		case "build":
			return cluster.Build(ctx, os.Stderr)
		case "up":
			return up(ctx)
		case "work":
			return work(ctx)
		}
	}
	return errors.New("usage: node build|up|work")
}

// start starts a whole node.
func start(ctx context.Context) (_ *cluster.Cluster, err error) {
	begin := time.Now()
	c, err := cluster.New(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.StartAPI(ctx, ""); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	api := time.Since(begin)
	if err := c.StartNode(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	fmt.Fprintf(os.Stderr, "API server ready after %.1f s, node Ready after %.1f s\n", api.Seconds(), time.Since(begin).Seconds())
	return c, nil
}

func up(ctx context.Context) error {
	c, err := start(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("kubeconfig: %s\nits namespaces: nsenter --target %d --mount --net --pid\nimage: %s; audit log: %s\nCtrl-C ends it\n",
		c.Kubeconfig(cluster.Admin), c.PID, cluster.Busybox, c.AuditLog())
	<-ctx.Done()
	return c.Stop()
}

func work(ctx context.Context) error {
	return errors.New("TODO")
}

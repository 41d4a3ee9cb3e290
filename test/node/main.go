// Command node has the Kubernetes clusters of test/cluster by hand.
//
//	go run ./test/node build   builds the Kubernetes programs into the cache, once
//	go run ./test/node up      runs a cluster of one node until Ctrl-C
//	go run ./test/node work F  runs one that starts, has some workloads with health checks and ends: ordinary work to
//	                           record (test/ordinary). F gets its audit log
package main

import (
	"context"
	_ "embed"
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
	switch {
	case len(args) == 1 && args[0] == "build":
		return cluster.Build(ctx, os.Stderr)
	case len(args) == 1 && args[0] == "up":
		return up(ctx)
	case len(args) == 2 && args[0] == "work":
		return work(ctx, args[1])
	}
	return errors.New("usage: node build|up|work AUDITLOG")
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

//go:embed work.yaml
var workloads string

// work is a cluster's ordinary life: it starts, workloads are made, run, are rolled out anew and removed, and it ends. Its
// audit log goes to the file audit.
func work(ctx context.Context, audit string) (err error) {
	c, err := start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	for _, step := range []struct {
		stdin string
		args  []string
	}{
		{workloads, []string{"apply", "-f", "-"}},
		{"", []string{"-n", "shop", "rollout", "status", "deployment/web", "--timeout=2m"}},
		{"", []string{"-n", "monitoring", "rollout", "status", "daemonset/agent", "--timeout=2m"}},
		{"", []string{"-n", "shop", "wait", "--for=condition=complete", "job/report", "--timeout=2m"}},
		{"", []string{"-n", "shop", "create", "job", "tidy-now", "--from=cronjob/tidy"}},
		{"", []string{"-n", "shop", "wait", "--for=condition=complete", "job/tidy-now", "--timeout=2m"}},
		{"", []string{"-n", "shop", "logs", "deployment/web"}},
		{"", []string{"-n", "shop", "set", "image", "deployment/web", "web=" + cluster.BusyboxOther}},
		{"", []string{"-n", "shop", "rollout", "status", "deployment/web", "--timeout=2m"}},
		{"", []string{"get", "pods,services,nodes", "-A"}},
		{"", []string{"-n", "shop", "scale", "deployment/web", "--replicas=5"}},
		{"", []string{"-n", "shop", "rollout", "status", "deployment/web", "--timeout=2m"}},
	} {
		if _, err := c.Kubectl(ctx, cluster.Admin, step.stdin, step.args...); err != nil {
			return err
		}
	}
	select { // health checks, meanwhile
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := c.Kubectl(ctx, cluster.Admin, "", "delete", "namespace", "shop", "monitoring", "--timeout=2m"); err != nil {
		return err
	}
	log, err := os.ReadFile(c.AuditLog())
	if err != nil {
		return err
	}
	return os.WriteFile(audit, log, 0o644)
}

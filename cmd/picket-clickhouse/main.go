// Command picket-clickhouse serves the HTTP interface of ClickHouse over the
// engine as a library, for machines that have no ClickHouse server. Package
// picket/internal/chdb says what of the interface it keeps.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"picket/internal/chdb"
)

func main() {
	var engine chdb.Options
	var handler chdb.HandlerOptions
	flags := flag.NewFlagSet("picket-clickhouse", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:8123", "`address` to serve on. There is no password: keep it a loopback address")
	flags.StringVar(&engine.Data, "data", "", "`folder` of the tables, created when missing (required)")
	flags.StringVar(&engine.Library, "lib", "", "`path` of libchdb.so (default: $PICKET_CHDB_LIB, or where scripts/fetch-chdb.sh puts it)")
	flags.IntVar(&engine.MaxThreads, "max-threads", 2, "threads one query may use")
	flags.Int64Var(&engine.MaxMemory, "max-memory", 2<<30, "`bytes` of memory the engine may use; one query may use half of it")
	flags.IntVar(&handler.MaxQueries, "max-queries", 16, "queries that run at a time, more wait")
	flags.Int64Var(&handler.MaxBody, "max-body", 256<<20, "`bytes` the body of one request may have, decompressed")
	_ = flags.Parse(os.Args[1:]) // ExitOnError

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if engine.Data == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: picket-clickhouse --data FOLDER [flags]")
		flags.PrintDefaults()
		os.Exit(2)
	}
	if err := chdb.Confine(engine); chdb.Unconfinable(err) {
		log.Warn("queries can read and write every file this user can", "reason", err)
	} else if err != nil {
		log.Error("picket-clickhouse stops", "error", err)
		os.Exit(1)
	}
	// The engine writes to pipes and sockets whose readers may leave.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := chdb.Serve(ctx, log, *listen, engine, handler); err != nil {
		log.Error("picket-clickhouse stops", "error", err)
		os.Exit(1)
	}
}

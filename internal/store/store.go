// Package store is Picket's way to ClickHouse: the connection, the tables and
// their migration, and the Writer, which brings the messages of a durable
// consumer into tables exactly once (docs/storage.md has the protocol and what
// it does at every crash).
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"picket/schemas"
)

// DB is a pool of connections to one ClickHouse server. It is safe for
// concurrent use.
type DB struct {
	cfg       Config
	conn      driver.Conn
	closeIdle func()
	log       *slog.Logger
}

// Open prepares the connection; it does not wait for the server. The caller
// must Close it.
func Open(cfg Config, log *slog.Logger) (*DB, error) {
	o, err := cfg.options()
	if err != nil {
		return nil, err
	}
	closeIdle := shareTransport(o)
	conn, err := clickhouse.Open(o)
	if err != nil {
		return nil, fmt.Errorf("clickhouse: %w", err)
	}
	return &DB{cfg: cfg, conn: conn, closeIdle: closeIdle, log: log}, nil
}

// Close closes the connections.
func (db *DB) Close() error {
	defer db.closeIdle()
	return db.conn.Close()
}

// readyTimeout bounds one readiness check.
const readyTimeout = 2 * time.Second

// Ready returns nil while the server answers; it is the readiness check.
func (db *DB) Ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	if err := db.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ClickHouse at %s: %w", db.cfg.URL, explain(err))
	}
	return nil
}

// Wait verifies the tables. While the server does not answer or has no time it
// tries again without bound, with a warning; for what somebody must put right
// it waits at most patience. The error is ctx's or Verify's.
func (db *DB) Wait(ctx context.Context, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := db.Verify(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var e *Error
		if outage := errors.As(err, &e) && e.Kind != Setup; !outage && time.Now().After(deadline) {
			return err
		}
		db.log.Warn("ClickHouse is not ready, trying again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// exec runs one statement that returns nothing.
func (db *DB) exec(ctx context.Context, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.InsertTimeout)
	defer cancel()
	if err := db.conn.Exec(ctx, statement); err != nil {
		return explain(err)
	}
	return nil
}

// Query runs a statement and returns its result in a ClickHouse format such as
// PrettyCompact, JSONEachRow or CSVWithNames. Names without a database are
// those of schemas.Database. The caller must Close the stream; a failure after
// the first rows is an error of its Read. All errors are one sentence.
func (db *DB) Query(ctx context.Context, sql, format string) (io.ReadCloser, error) {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"database": schemas.Database,
		// A rule as SQL is long: it has its lists in it.
		"max_query_size": 64 << 20, "max_ast_elements": 1_000_000, "max_expanded_ast_elements": 10_000_000,
	}))
	s, err := db.conn.QueryFormat(ctx, format, sql)
	if err != nil {
		return nil, explain(err)
	}
	return stream{s}, nil
}

type stream struct{ io.ReadCloser }

func (s stream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = explain(err)
	}
	return n, err
}

// insert sends a Native block as one insert under a deduplication token. A nil
// error means that the table has the block's rows, or that it has had an
// insert under this token before.
func (db *DB) insert(ctx context.Context, table string, columns []string, body io.Reader, token string) error {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.InsertTimeout)
	defer cancel()
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"insert_deduplicate":                                 1,
		"insert_deduplication_token":                         token,
		"deduplicate_blocks_in_dependent_materialized_views": 1,
		// One block stays one block, so that the rows of a partition become
		// visible together or not at all.
		"async_insert":               0,
		"max_insert_threads":         1,
		"min_insert_block_size_rows": 0, "min_insert_block_size_bytes": 0,
		// The answer comes when everything is done, with its true status.
		"wait_end_of_query": 1,
	}))
	stmt := fmt.Sprintf("INSERT INTO %s.%s (%s)", schemas.Database, table, strings.Join(columns, ", "))
	if err := db.conn.InsertFormat(ctx, "Native", stmt, body); err != nil {
		return explain(err)
	}
	return nil
}

// maxLookup bounds the text of the ids in one lookup; ClickHouse takes
// statements of at most 256 KiB.
const maxLookup = 128 << 10

// lookup returns which of the batch ids the table has rows of. partitions, if
// not empty, are the only dates (of batch_date, yyyy-mm-dd) to look under.
func (db *DB) lookup(ctx context.Context, table string, partitions, ids []string) (map[string]bool, error) {
	found := make(map[string]bool, len(ids))
	for len(ids) > 0 {
		var in strings.Builder
		n := 0
		for n < len(ids) && (n == 0 || in.Len() < maxLookup) {
			if n > 0 {
				in.WriteByte(',')
			}
			in.WriteString(quote(ids[n]))
			n++
		}
		ids = ids[n:]
		sql := fmt.Sprintf("SELECT DISTINCT batch_id FROM %s.%s WHERE batch_id IN (%s)", schemas.Database, table, in.String())
		if len(partitions) > 0 {
			quoted := make([]string, len(partitions))
			for i, p := range partitions {
				quoted[i] = quote(p)
			}
			sql += " AND batch_date IN (" + strings.Join(quoted, ",") + ")"
		}
		if err := db.collect(ctx, sql, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (db *DB) collect(ctx context.Context, sql string, into map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, db.cfg.InsertTimeout)
	defer cancel()
	rows, err := db.conn.Query(ctx, sql)
	if err != nil {
		return explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("read batch ids: %w", err)
		}
		into[id] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return explain(err)
	}
	return nil
}

// quote makes a SQL string literal of any bytes.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

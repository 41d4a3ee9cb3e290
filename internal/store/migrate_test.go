package store

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"picket/internal/clickhousebin/clickhousetest"
	"picket/schemas"
)

// open returns a migrated database on a real engine.
func open(t testing.TB, url string) *DB {
	t.Helper()
	cfg := DefaultConfig()
	cfg.URL = url
	db, err := Open(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// query returns a statement's result as tab-separated text.
func query(t testing.TB, db *DB, sql string) string {
	t.Helper()
	r, err := db.Query(context.Background(), sql, "TabSeparated")
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.TrimSuffix(string(b), "\n") // not more: the last column may be empty
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	s := clickhousetest.Start(t, "")
	db := open(t, s.URL)
	ctx := t.Context()
	err := db.Verify(ctx)
	if err == nil || !strings.Contains(err.Error(), "table process") || !strings.Contains(err.Error(), "picket migrate") {
		t.Fatalf("Verify on an empty server says: %v", err)
	}
	for range 2 {
		if err := db.Migrate(ctx); err != nil {
			t.Fatal(err)
		}
		if err := db.Verify(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got := query(t, db, "SELECT count() FROM system.tables WHERE database = 'picket' AND name != 'goose_db_version'"); got != "16" {
		t.Fatalf("%s tables", got)
	}
	if got := query(t, db, "SELECT groupArray(version_id) FROM (SELECT version_id FROM goose_db_version ORDER BY version_id)"); got != "[0,1]" {
		t.Fatalf("versions %s", got)
	}

	// A column that this version added after the table was made.
	if err := db.exec(ctx, "ALTER TABLE picket.process DROP COLUMN process_tty"); err != nil {
		t.Fatal(err)
	}
	if err := db.Verify(ctx); err == nil || !strings.Contains(err.Error(), "process.process_tty") {
		t.Fatalf("Verify says: %v", err)
	}
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if err := db.Verify(ctx); err != nil {
		t.Fatal(err)
	}
	if got := query(t, db, "SELECT groupArray(name) FROM system.columns WHERE database = 'picket' AND table = 'process' AND default_kind = ''"); got != "['"+strings.Join(names(schemas.TableColumns(schemas.Process)), "','")+"']" {
		t.Fatalf("columns out of order: %s", got)
	}

	// The alerts table of the first version, which lacks what findings gained.
	for _, c := range []string{"why", "rule_id", "tactic_ids"} {
		if err := db.exec(ctx, "ALTER TABLE picket.alerts DROP COLUMN "+c); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Verify(ctx); err == nil || !strings.Contains(err.Error(), "alerts.why") {
		t.Fatalf("Verify says: %v", err)
	}
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if got := query(t, db, "SELECT arrayElement(groupArray(name), 8) FROM system.columns WHERE database = 'picket' AND table = 'alerts'"); got != "rule_id" {
		t.Fatalf("the eighth column of alerts is %s", got)
	}

	// A newer version was here: this one changes nothing.
	if err := db.exec(ctx, "INSERT INTO picket.goose_db_version (version_id, is_applied) VALUES (1000, 1)"); err != nil {
		t.Fatal(err)
	}
	if err := db.exec(ctx, "ALTER TABLE picket.process DROP COLUMN process_tty"); err != nil {
		t.Fatal(err)
	}
	if err := db.Migrate(ctx); err == nil || !strings.Contains(err.Error(), "newer version of Picket (migration 1000; this one knows 1)") {
		t.Fatalf("Migrate of an older version says: %v", err)
	}
	if got := query(t, db, "SELECT count() FROM system.columns WHERE table = 'process' AND name = 'process_tty'"); got != "0" {
		t.Fatal("the older version has changed a table")
	}
	if err := db.exec(ctx, "DELETE FROM picket.goose_db_version WHERE version_id = 1000"); err != nil {
		t.Fatal(err)
	}
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}

	// A table that somebody made otherwise.
	if err := db.exec(ctx, "ALTER TABLE picket.file MODIFY COLUMN file_mode String"); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(context.Context) error{"Verify": db.Verify, "Migrate": db.Migrate} {
		if err := f(ctx); err == nil || !strings.Contains(err.Error(), "file.file_mode is String, not UInt32") {
			t.Fatalf("%s says: %v", name, err)
		}
	}
}

func names(ids []schemas.FieldID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, id.Field().Name)
	}
	return out
}

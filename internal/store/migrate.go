package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/pressly/goose/v3"

	"picket/schemas"
)

// versionTable is where goose keeps which migrations were applied.
const versionTable = schemas.Database + ".goose_db_version"

// migrations are what the registry cannot express by itself. The first creates
// the tables as they are in the version that runs it; what the registry gained
// later, Migrate adds from the registry. Every migration is a list of single
// statements that may be repeated, because one that fails half way is run
// again from its beginning.
func migrations() []*goose.Migration {
	return []*goose.Migration{migration(1, createTables())}
}

func createTables() []string {
	var out []string
	for _, c := range schemas.Classes() {
		out = append(out, schemas.CreateTable(c))
	}
	return append(out, schemas.CreateAlerts()...)
}

func migration(version int64, statements []string) *goose.Migration {
	return goose.NewGoMigration(version, &goose.GoFunc{RunDB: func(ctx context.Context, db *sql.DB) error {
		for _, s := range statements {
			if _, err := db.ExecContext(ctx, s); err != nil {
				head, _, _ := strings.Cut(s, "\n")
				return fmt.Errorf("%s …: %w", head, err)
			}
		}
		return nil
	}}, nil)
}

// Migrate creates the database and its tables, or brings existing ones to what
// this version needs. It may be repeated, also after it was interrupted. What a
// newer version has migrated it leaves alone and says so. A column whose type
// differs from the registry's is an error that names it: types never change,
// so somebody else made it.
func (db *DB) Migrate(ctx context.Context) error {
	if err := db.exec(ctx, "CREATE DATABASE IF NOT EXISTS "+schemas.Database); err != nil {
		return fmt.Errorf("create database %s: %w", schemas.Database, err)
	}
	options, err := db.cfg.options()
	if err != nil {
		return err
	}
	defer shareTransport(options)()
	handle := clickhouse.OpenDB(options)
	defer handle.Close()
	p, err := goose.NewProvider(goose.DialectClickHouse, handle, nil,
		goose.WithTableName(versionTable), goose.WithGoMigrations(migrations()...), goose.WithDisableGlobalRegistry(true), goose.WithSlog(db.log))
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	have, known, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrate ClickHouse at %s: %w", db.cfg.URL, explain(err))
	}
	if have > known {
		return fmt.Errorf("ClickHouse at %s was migrated by a newer version of Picket (migration %d; this one knows %d): run the newer version's `picket migrate`", db.cfg.URL, have, known)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate ClickHouse at %s: %w", db.cfg.URL, explain(err))
	}
	d, err := db.drift(ctx)
	if err != nil {
		return err
	}
	if len(d.tables) > 0 { // dropped since
		for _, s := range createTables() {
			if err := db.exec(ctx, s); err != nil {
				return fmt.Errorf("create missing tables: %w", err)
			}
		}
	}
	for _, c := range d.missing {
		if slices.Contains(d.tables, c.table) {
			continue
		}
		stmt := fmt.Sprintf("ALTER TABLE %s.%s ADD COLUMN IF NOT EXISTS %s", schemas.Database, c.table, c.definition)
		if c.after != "" {
			stmt += " AFTER " + c.after
		}
		if err := db.exec(ctx, stmt); err != nil {
			return fmt.Errorf("add column %s.%s: %w", c.table, c.name, err)
		}
		db.log.Info("column added", "table", c.table, "column", c.name)
	}
	if err := d.wrong(); err != nil {
		return err
	}
	for _, s := range schemas.CreateViews() { // after the columns that they name
		if err := db.exec(ctx, s); err != nil {
			head, _, _ := strings.Cut(s, "\n")
			return fmt.Errorf("%s …: %w", head, err)
		}
	}
	return nil
}

// Verify compares the tables with what this version needs and says what is
// missing. Services call it before they work; they never change tables.
func (db *DB) Verify(ctx context.Context) error {
	d, err := db.drift(ctx)
	if err != nil {
		return err
	}
	var missing []string
	for _, t := range d.tables {
		missing = append(missing, "table "+t)
	}
	for _, c := range d.missing {
		if !slices.Contains(d.tables, c.table) {
			missing = append(missing, "column "+c.table+"."+c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("ClickHouse at %s lacks %s: run `picket migrate` against it", db.cfg.URL, some(missing))
	}
	return d.wrong()
}

// some joins names, the first few of them.
func some(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// wanted is one column of this version's tables.
type wanted struct {
	table, name, typ, definition, after string
}

// wantedColumns lists the columns of all tables that rows are inserted into.
func wantedColumns() []wanted {
	var out []wanted
	for _, c := range schemas.Classes() {
		after := ""
		for _, id := range schemas.TableColumns(c) {
			f := id.Field()
			out = append(out, wanted{c.Table(), f.Name, f.ClickHouseType(), schemas.ColumnDefinition(id), after})
			after = f.Name
		}
	}
	after := ""
	for _, c := range schemas.AlertColumns() {
		out = append(out, wanted{schemas.AlertsTable, c.Name, c.Type, c.Definition(), after})
		after = c.Name
	}
	return out
}

// drift is how a server's tables differ from this version's.
type drift struct {
	url     string
	tables  []string // that do not exist
	missing []wanted
	retyped []string // "table.column is X, not Y"
}

func (d drift) wrong() error {
	if len(d.retyped) == 0 {
		return nil
	}
	return fmt.Errorf("ClickHouse at %s has columns of other types than this version of Picket needs: %s: rename or drop the table, then run `picket migrate`", d.url, some(d.retyped))
}

func (db *DB) drift(ctx context.Context) (drift, error) {
	d := drift{url: db.cfg.URL}
	have := map[string]map[string]string{}
	ctx, cancel := context.WithTimeout(ctx, db.cfg.InsertTimeout)
	defer cancel()
	rows, err := db.conn.Query(ctx, "SELECT table, name, type FROM system.columns WHERE database = '"+schemas.Database+"'")
	if err != nil {
		return d, fmt.Errorf("read the columns of ClickHouse at %s (clickhouse.url): %w", db.cfg.URL, explain(err))
	}
	defer rows.Close()
	for rows.Next() {
		var table, name, typ string
		if err := rows.Scan(&table, &name, &typ); err != nil {
			return d, fmt.Errorf("read the columns of ClickHouse at %s: %w", db.cfg.URL, err)
		}
		if have[table] == nil {
			have[table] = map[string]string{}
		}
		have[table][name] = typ
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return d, fmt.Errorf("read the columns of ClickHouse at %s: %w", db.cfg.URL, explain(err))
	}
	for _, w := range wantedColumns() {
		columns, ok := have[w.table]
		if !ok && !slices.Contains(d.tables, w.table) {
			d.tables = append(d.tables, w.table)
		}
		switch typ, ok := columns[w.name]; {
		case !ok:
			d.missing = append(d.missing, w)
		case typ != w.typ:
			d.retyped = append(d.retyped, fmt.Sprintf("%s.%s is %s, not %s", w.table, w.name, typ, w.typ))
		}
	}
	return d, nil
}

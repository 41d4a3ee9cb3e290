package chdb

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Options say where the engine keeps its data and what it may use.
type Options struct {
	// Library is the path of libchdb.so; empty means DefaultLibrary.
	Library string
	// Data is the folder of the tables. It is created; one engine at a time
	// may hold it.
	Data string
	// MaxThreads bounds the threads of one query; default 2.
	MaxThreads int
	// MaxMemory bounds, in bytes, what the engine's allocations may take
	// together; default 2 GiB. Half of it is the bound of one query. The
	// engine lowers it to 90 % of the machine's memory.
	MaxMemory int64
}

// Stats is what the engine counted while it ran a statement.
type Stats struct {
	ReadRows, ReadBytes       uint64 // taken from storage
	WrittenRows, WrittenBytes uint64 // put into storage
	ResultRows, ResultBytes   uint64 // of the result, before formatting
}

// Param is a query parameter, {Name:Type} in the statement. The value is in
// ClickHouse's escaped form, as param_* in a URL.
type Param struct{ Name, Value string }

// Setting is a ClickHouse setting in force for one query.
type Setting struct{ Name, Value string }

// Query is one statement and what surrounds it.
type Query struct {
	SQL      string
	Format   string // of the result if the statement has no FORMAT clause
	Database string // empty means default
	Params   []Param
	Settings []Setting
}

// maxResult bounds a result that is held in memory, in bytes.
const maxResult = 64 << 20

// Engine is the ClickHouse engine of this process. There can be only one in a
// process, and it cannot be opened again after Close. Safe for concurrent use.
type Engine struct {
	lib  *library
	data string
	temp string // for temporary files
	args []string
	lock *os.File
	// keeper is a connection that runs nothing: the engine stops with the last
	// connection, so one stays open.
	keeper unsafe.Pointer

	version, displayName, timezone string

	mu      sync.Mutex
	running int
	idle    *sync.Cond // running went down
	closed  bool
}

// Open loads the library and starts the engine on a data folder. The first of
// its errors a user may meet: the library is missing, the folder is in use.
//
// The engine is a C++ library in this process: it takes over no signal handler
// (those it installs are removed again), and a crash of it ends the process.
func Open(o Options) (_ *Engine, err error) {
	if o.Library == "" {
		if o.Library, err = DefaultLibrary(); err != nil {
			return nil, err
		}
	}
	if o.MaxThreads <= 0 {
		o.MaxThreads = 2
	}
	if o.MaxMemory <= 0 {
		o.MaxMemory = 2 << 30
	}
	data, err := filepath.Abs(o.Data)
	if err != nil {
		return nil, fmt.Errorf("find the data folder %s: %w", o.Data, err)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	lock, err := lockFolder(data)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	config, err := writeConfig(data, o)
	if err != nil {
		return nil, err
	}
	// Where this folder is missing at start, this version of the library does
	// not start what removes the files of dropped tables, and DROP … SYNC waits
	// for ever.
	if err := os.MkdirAll(filepath.Join(data, "metadata"), 0o750); err != nil {
		return nil, fmt.Errorf("create the folder of the tables: %w", err)
	}
	temp := filepath.Join(data, "http")
	if err := os.RemoveAll(temp); err != nil {
		return nil, fmt.Errorf("remove the temporary files of a former run: %w", err)
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, fmt.Errorf("create the folder for temporary files: %w", err)
	}
	lib, err := loadLibrary(o.Library)
	if err != nil {
		return nil, err
	}

	e := &Engine{lib: lib, data: data, temp: temp, lock: lock, args: []string{"clickhouse", "--path=" + data, "--config-file=" + config}}
	e.idle = sync.NewCond(&e.mu)
	handlers, err := readSignalHandlers()
	if err != nil {
		return nil, err
	}
	keeper, err := lib.open(e.args)
	if restoreErr := restoreSignalHandlers(handlers); err == nil {
		err = restoreErr
	}
	if err != nil {
		return nil, fmt.Errorf("start the ClickHouse engine on %s: %w", data, err)
	}
	e.keeper = keeper
	out := lib.run(keeper, []byte("SELECT version(), displayName(), timezone()"), "TabSeparated", nil, maxResult)
	fields := strings.Split(strings.TrimSpace(string(out.data)), "\t")
	if out.err != "" || len(fields) != 3 {
		return nil, fmt.Errorf("ask the ClickHouse engine for its version: %s%s", out.err, out.data)
	}
	e.version, e.displayName, e.timezone = fields[0], fields[1], fields[2]
	return e, nil
}

// Version is the version of the engine, as version() gives it.
func (e *Engine) Version() string { return e.version }

// errClosed is the answer to a query that comes while the engine stops.
var errClosed = errorKind{236, "ABORTED"}.new("The server is shutting down")

// Query runs a statement and returns its result in the format asked for. The
// error is an *Exception. When ctx ends first, the query is killed.
//
// Each query has a connection of its own (it costs a tenth of a millisecond),
// so nothing of one query is seen by another: settings, current database and
// temporary tables all end with it.
func (e *Engine) Query(ctx context.Context, q Query) ([]byte, Stats, error) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, Stats{}, errClosed
	}
	e.running++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.running--
		e.idle.Broadcast()
		e.mu.Unlock()
	}()

	conn, err := e.lib.open(e.args)
	if err != nil {
		return nil, Stats{}, errUnknownEngineError.new("%v", err)
	}
	defer e.lib.close(conn)

	if q.Database != "" {
		if out := e.lib.run(conn, []byte("USE "+quoteName(q.Database)), "Null", nil, maxResult); out.err != "" {
			return nil, Stats{}, parseException(out.err)
		}
	}
	if len(q.Settings) > 0 {
		list := make([]string, len(q.Settings))
		for i, s := range q.Settings {
			list[i] = quoteName(s.Name) + " = " + quote(s.Value)
		}
		if out := e.lib.run(conn, []byte("SET "+strings.Join(list, ", ")), "Null", nil, maxResult); out.err != "" {
			return nil, Stats{}, parseException(out.err)
		}
	}

	// The engine names queries itself and has no call that interrupts one. A
	// comment with a number of our own finds it in the list of processes.
	mark := "/* picket " + rand.Text() + " */"
	finished := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		select {
		case <-finished:
		case <-ctx.Done():
			e.kill(mark, finished)
		}
	}()
	out := e.lib.run(conn, []byte(q.SQL+" "+mark), q.Format, q.Params, maxResult)
	close(finished)
	<-killed
	if out.err != "" {
		return nil, out.stats, parseException(strings.ReplaceAll(out.err, " "+mark, ""))
	}
	return out.data, out.stats, nil
}

// kill asks the engine to end the query with this mark, again and again until
// it has finished: the first time may come before the query is listed.
func (e *Engine) kill(mark string, finished <-chan struct{}) {
	conn, err := e.lib.open(e.args)
	if err != nil {
		return // no memory for a connection: the query ends by itself
	}
	defer e.lib.close(conn)
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		e.lib.run(conn, []byte("KILL QUERY WHERE endsWith(query, "+quote(mark)+") ASYNC"), "Null", nil, maxResult)
		select {
		case <-finished:
			return
		case <-retry.C:
		}
	}
}

// Close stops the engine when the queries that run have ended, and gives the
// folder free. It waits for them until ctx ends; then it returns an error, and
// the process has to end without the engine being stopped, which its storage
// stands as it stands a crash. Queries that come after it are refused.
func (e *Engine) Close(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.idle.Broadcast()
	})
	defer stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	for e.running > 0 && ctx.Err() == nil {
		e.idle.Wait()
	}
	if e.running > 0 {
		return fmt.Errorf("stop the ClickHouse engine: %d queries still run: %w", e.running, ctx.Err())
	}
	e.lib.close(e.keeper)
	return e.lock.Close()
}

// ErrInUse is the error of Open on a folder that another engine holds.
var ErrInUse = errors.New("another picket-clickhouse is running on it")

// lockFolder takes the folder for this process. The lock ends with the process.
func lockFolder(data string) (*os.File, error) {
	path := filepath.Join(data, "picket-clickhouse.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := f.Read(holder)
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, fmt.Errorf("the data folder %s is in use: %w (process %s): stop that one, or choose another folder", data, ErrInUse, strings.TrimSpace(string(holder[:n])))
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}

// writeConfig writes the engine's configuration below the data folder and
// returns the path of its main file. Without one the engine would take a
// config.xml of the working directory or of the home folder.
func writeConfig(data string, o Options) (string, error) {
	dir := filepath.Join(data, "config")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("create the folder of the engine's configuration: %w", err)
	}
	main, users := filepath.Join(dir, "config.xml"), filepath.Join(dir, "users.xml")
	for path, text := range map[string]string{
		main:  fmt.Sprintf(serverConfig, o.MaxMemory, escapeXML(users)),
		users: fmt.Sprintf(usersConfig, o.MaxThreads, o.MaxMemory/2, o.MaxMemory/4, o.MaxMemory/4),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("write the engine's configuration: %w", err)
		}
	}
	return main, nil
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
	return b.String()
}

// serverConfig keeps caches and background threads to what a small machine
// has; ClickHouse's own defaults are for one that does nothing else.
const serverConfig = `<clickhouse>
    <display_name>picket</display_name>
    <max_server_memory_usage>%d</max_server_memory_usage>
    <users_config>%s</users_config>
    <mark_cache_size>67108864</mark_cache_size>
    <primary_index_cache_size>67108864</primary_index_cache_size>
    <index_mark_cache_size>16777216</index_mark_cache_size>
    <uncompressed_cache_size>0</uncompressed_cache_size>
    <index_uncompressed_cache_size>0</index_uncompressed_cache_size>
    <query_condition_cache_size>16777216</query_condition_cache_size>
    <compiled_expression_cache_size>33554432</compiled_expression_cache_size>
    <background_pool_size>2</background_pool_size>
    <background_merges_mutations_concurrency_ratio>2</background_merges_mutations_concurrency_ratio>
    <background_move_pool_size>1</background_move_pool_size>
    <background_fetches_pool_size>1</background_fetches_pool_size>
    <background_common_pool_size>2</background_common_pool_size>
    <background_schedule_pool_size>4</background_schedule_pool_size>
    <background_buffer_flush_schedule_pool_size>1</background_buffer_flush_schedule_pool_size>
    <background_message_broker_schedule_pool_size>1</background_message_broker_schedule_pool_size>
    <background_distributed_schedule_pool_size>1</background_distributed_schedule_pool_size>
    <merge_tree>
        <number_of_free_entries_in_pool_to_execute_mutation>2</number_of_free_entries_in_pool_to_execute_mutation>
        <number_of_free_entries_in_pool_to_lower_max_size_of_merge>2</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
        <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>2</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
    </merge_tree>
</clickhouse>
`

// usersConfig has the one user there is. Sorting and grouping go to disk
// before a query reaches its bound of memory. The last two settings are the
// server's defaults, which differ from the library's.
const usersConfig = `<clickhouse>
    <profiles>
        <default>
            <max_threads>%d</max_threads>
            <max_memory_usage>%d</max_memory_usage>
            <max_bytes_before_external_group_by>%d</max_bytes_before_external_group_by>
            <max_bytes_before_external_sort>%d</max_bytes_before_external_sort>
            <implicit_select>0</implicit_select>
            <allow_introspection_functions>0</allow_introspection_functions>
        </default>
    </profiles>
    <users>
        <default>
            <password></password>
            <networks><ip>::/0</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
    </users>
    <quotas><default></default></quotas>
</clickhouse>
`

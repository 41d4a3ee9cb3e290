package chdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// Version is the version of the npm package scripts/fetch-chdb.sh installs; it
// names the folder below the cache in which DefaultLibrary looks.
const Version = "26.5.3"

// DefaultLibrary is the path of libchdb.so where scripts/fetch-chdb.sh puts it:
// PICKET_CHDB_LIB if set, else chdb/<Version>/libchdb.so below PICKET_CACHE,
// or below picket in XDG_CACHE_HOME (~/.cache when unset).
func DefaultLibrary() (string, error) {
	if p := os.Getenv("PICKET_CHDB_LIB"); p != "" {
		return p, nil
	}
	cache := os.Getenv("PICKET_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder that holds libchdb.so: %w (set PICKET_CACHE or PICKET_CHDB_LIB)", err)
		}
		cache = filepath.Join(base, "picket")
	}
	return filepath.Join(cache, "chdb", Version, "libchdb.so"), nil
}

// library is the part of libchdb's C interface Picket uses. Every function may
// be called from any thread; a connection serves one statement at a time.
type library struct {
	connect func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	close   func(conn unsafe.Pointer)
	query   func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
		names, nameLens, values, valueLens unsafe.Pointer, params uintptr) unsafe.Pointer
	destroy func(result unsafe.Pointer)

	buffer       func(result unsafe.Pointer) unsafe.Pointer
	length       func(result unsafe.Pointer) uintptr
	errorText    func(result unsafe.Pointer) unsafe.Pointer
	resultRows   func(result unsafe.Pointer) uint64
	resultBytes  func(result unsafe.Pointer) uint64
	storageRows  func(result unsafe.Pointer) uint64
	storageBytes func(result unsafe.Pointer) uint64
	writtenRows  func(result unsafe.Pointer) uint64
	writtenBytes func(result unsafe.Pointer) uint64
}

// loadLibrary maps libchdb.so into the process and binds its symbols. Nothing
// of the engine runs before the first connect.
func loadLibrary(path string) (*library, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("the ClickHouse library is not there: %w: run `make deps` (scripts/fetch-chdb.sh), or name another with --lib or PICKET_CHDB_LIB", err)
	}
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w: if the file is damaged remove it and run `make deps`", path, err)
	}
	l := &library{}
	for name, fn := range map[string]any{
		"chdb_connect":                   &l.connect,
		"chdb_close_conn":                &l.close,
		"chdb_query_with_params_n":       &l.query,
		"chdb_destroy_query_result":      &l.destroy,
		"chdb_result_buffer":             &l.buffer,
		"chdb_result_length":             &l.length,
		"chdb_result_error":              &l.errorText,
		"chdb_result_rows_read":          &l.resultRows,
		"chdb_result_bytes_read":         &l.resultBytes,
		"chdb_result_storage_rows_read":  &l.storageRows,
		"chdb_result_storage_bytes_read": &l.storageBytes,
		"chdb_result_rows_written":       &l.writtenRows,
		"chdb_result_bytes_written":      &l.writtenBytes,
	} {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, fmt.Errorf("%s has no %s: it is not libchdb %s: run `make deps`", path, name, Version)
		}
		purego.RegisterFunc(fn, symbol)
	}
	return l, nil
}

// errConnect is what chdb_connect reports: it returns nothing but null, and
// writes its reason to standard error.
var errConnect = errors.New("the ClickHouse engine refused to start (its reason stands above in the log)")

// open makes a connection; arguments are those of the clickhouse command line.
func (l *library) open(args []string) (unsafe.Pointer, error) {
	argv := cStrings(args)
	conn := l.connect(int32(len(args)), unsafe.Pointer(unsafe.SliceData(argv)))
	runtime.KeepAlive(argv)
	if conn == nil {
		return nil, errConnect
	}
	return conn, nil
}

// outcome is what one statement returned.
type outcome struct {
	data  []byte
	stats Stats
	err   string // the engine's exception text, empty on success
}

// run executes one statement on a connection and copies its result out of the
// library's memory. A result of more than limit bytes is not copied and comes
// back as an exception.
func (l *library) run(conn unsafe.Pointer, sql []byte, format string, params []Param, limit int) outcome {
	names, values := make([]*byte, len(params)), make([]*byte, len(params))
	nameLens, valueLens := make([]uintptr, len(params)), make([]uintptr, len(params))
	for i, p := range params {
		names[i], nameLens[i] = unsafe.StringData(p.Name), uintptr(len(p.Name))
		values[i], valueLens[i] = unsafe.StringData(p.Value), uintptr(len(p.Value))
	}
	// A connection handle points at the connection: the calls take what it points at.
	result := l.query(*(*unsafe.Pointer)(conn),
		unsafe.Pointer(unsafe.SliceData(sql)), uintptr(len(sql)),
		unsafe.Pointer(unsafe.StringData(format)), uintptr(len(format)),
		unsafe.Pointer(unsafe.SliceData(names)), unsafe.Pointer(unsafe.SliceData(nameLens)),
		unsafe.Pointer(unsafe.SliceData(values)), unsafe.Pointer(unsafe.SliceData(valueLens)),
		uintptr(len(params)))
	runtime.KeepAlive(sql)
	runtime.KeepAlive(format)
	runtime.KeepAlive(params)
	runtime.KeepAlive(names)
	runtime.KeepAlive(values)
	runtime.KeepAlive(nameLens)
	runtime.KeepAlive(valueLens)
	if result == nil {
		return outcome{err: "Code: 1002. DB::Exception: the engine returned no result. (UNKNOWN_EXCEPTION)"}
	}
	defer l.destroy(result)
	if text := l.errorText(result); text != nil {
		return outcome{err: unix.BytePtrToString((*byte)(text))}
	}
	out := outcome{stats: Stats{
		ReadRows: l.storageRows(result), ReadBytes: l.storageBytes(result),
		WrittenRows: l.writtenRows(result), WrittenBytes: l.writtenBytes(result),
		ResultRows: l.resultRows(result), ResultBytes: l.resultBytes(result),
	}}
	n := l.length(result)
	if n > uintptr(limit) {
		return outcome{err: fmt.Sprintf("Code: 396. DB::Exception: The result of this statement is %d bytes and only SELECT is streamed, others are held to %d bytes. (TOO_MANY_ROWS_OR_BYTES)", n, limit)}
	}
	if p := l.buffer(result); p != nil && n > 0 {
		out.data = append([]byte(nil), unsafe.Slice((*byte)(p), n)...)
	}
	return out
}

// cStrings returns a null-terminated array of null-terminated strings.
func cStrings(args []string) []*byte {
	out := make([]*byte, 0, len(args)+1)
	for _, a := range args {
		out = append(out, unsafe.SliceData(append([]byte(a), 0)))
	}
	return append(out, nil)
}

// The engine installs handlers for the deadly signals when it starts. The Go
// runtime needs its own (a nil dereference is a recoverable panic only with
// them), so they are saved before and put back after.

// sigaction is the kernel's struct sigaction of amd64 and arm64.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const signals = 64

func readSignalHandlers() (saved [signals + 1]sigaction, err error) {
	for s := 1; s <= signals; s++ {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&saved[s])), unsafe.Sizeof(saved[s].mask), 0, 0)
		if errno != 0 {
			return saved, fmt.Errorf("read the handler of signal %d: %w", s, errno)
		}
	}
	return saved, nil
}

func restoreSignalHandlers(saved [signals + 1]sigaction) error {
	for s := 1; s <= signals; s++ {
		if unix.Signal(s) == unix.SIGKILL || unix.Signal(s) == unix.SIGSTOP {
			continue
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&saved[s])), 0, unsafe.Sizeof(saved[s].mask), 0, 0)
		if errno != 0 {
			return fmt.Errorf("restore the handler of signal %d: %w", s, errno)
		}
	}
	return nil
}

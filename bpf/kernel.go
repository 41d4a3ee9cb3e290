package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Options say how the programs are loaded. The zero value is good for a node with one sensor.
type Options struct {
	// Instance names this sensor among those of the machine; only one process owns an instance at a time.
	// 1 to 64 letters, digits, '-', '_'. Default "default".
	Instance string
	// BPFFS is where the BPF file system is, or is to be mounted. Default /sys/fs/bpf.
	BPFFS string
	// Sizes of the ring buffers in bytes, each a power of two from 4 KiB to 1 GiB. They are kernel memory,
	// and count as the sensor's, too, because it maps them.
	// Defaults: 4 MiB (about 6,000 execs), 8 MiB (about 30,000 opens), 2 MiB (about 9,000 connections),
	// 1 MiB (about 2,500 calls of class kernel), 1 MiB (about 1,300 DNS messages).
	ProcessRing, FileRing, NetworkRing, KernelRing, DNSRing int
	// Cgroup2 is where the root of cgroup2 is mounted: DNS messages are taken there, of all processes. Empty: they
	// are not taken.
	Cgroup2 string
	// Controller and Hierarchy name the hierarchy of cgroup version 1 whose groups name containers, as
	// /proc/cgroups has them: "memory" and its number. Empty: cgroup2 does.
	Controller string
	Hierarchy  int
}

var instanceName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (o *Options) complete() error {
	if o.Instance == "" {
		o.Instance = "default"
	}
	if !instanceName.MatchString(o.Instance) {
		return fmt.Errorf("instance name %q: use 1 to 64 letters, digits, '-' and '_'", o.Instance)
	}
	if o.BPFFS == "" {
		o.BPFFS = "/sys/fs/bpf"
	}
	for _, r := range []struct {
		name string
		size *int
		def  int
	}{
		{"process", &o.ProcessRing, 4 << 20},
		{"file", &o.FileRing, 8 << 20},
		{"network", &o.NetworkRing, 2 << 20},
		{"kernel", &o.KernelRing, 1 << 20},
		{"dns", &o.DNSRing, 1 << 20},
	} {
		if *r.size == 0 {
			*r.size = r.def
		}
		if n := *r.size; n < 4096 || n > 1<<30 || n&(n-1) != 0 || n%os.Getpagesize() != 0 {
			return fmt.Errorf("%s ring of %d bytes: use a power of two from %d to %d", r.name, n, max(4096, os.Getpagesize()), 1<<30)
		}
	}
	return nil
}

// Names of maps in the object that outlive the sensor.
const (
	mapConfig   = ".data.config"
	mapCounters = objectMapCounters
	mapLedger   = objectMapLedger
	mapWatches  = objectMapWatches
)

// rings has each class's ring.
var rings = [NumClasses]string{objectMapProcessRing, objectMapFileRing, objectMapNetworkRing, objectMapKernelRing, objectMapDnsRing}

// pinned are all maps a later sensor needs; the programs keep the others alive themselves.
var pinned = []string{mapConfig, mapCounters, mapLedger, mapWatches, objectMapShares,
	objectMapIgnoredCgroups, objectMapIgnoredPrograms, objectMapIgnoredProcesses, objectMapIgnoredPeers,
	objectMapProcessRing, objectMapFileRing, objectMapNetworkRing, objectMapKernelRing, objectMapDnsRing}

// programs are those that run on their own, where the kernel has what they attach to.
var programs = []string{objectProgPicketExec, objectProgPicketFork, objectProgPicketExit,
	objectProgPicketSysExit, objectProgPicketAttempt, objectProgPicketSignal, objectProgPicketUring, objectProgPicketUringSubmit, objectProgPicketCgroup, objectProgPicketDnsOut, objectProgPicketDnsIn}

// dnsPrograms are attached to the root of cgroup2, the others to tracepoints.
var dnsPrograms = map[string]ebpf.AttachType{
	objectProgPicketDnsOut: ebpf.AttachCGroupInetEgress,
	objectProgPicketDnsIn:  ebpf.AttachCGroupInetIngress,
}

// errClosed is what methods return after Close.
var errClosed = fmt.Errorf("the kernel part is closed: %w", os.ErrClosed)

// Kernel is the running kernel part. Its methods are safe for concurrent use.
type Kernel struct {
	dir       string // <bpffs>/picket/<instance>
	run       string // run-<identity>, in dir
	lock      *os.File
	cpus      int
	offers    offers
	resumed   bool
	abandoned Abandoned

	readers  []*Reader
	ledger   *Ledger
	counters *ebpf.Memory

	mu         sync.Mutex // guards what follows
	closed     bool
	maps       map[string]*ebpf.Map
	progs      map[string]*ebpf.Program
	links      map[string]link.Link
	config     [configBytes]byte     // the programs' settings as this process wrote them
	watching   map[watchKey]struct{} // what SetWatchedPaths wrote
	pinsGone   bool                  // told by Check
	generation uint32                // of the set of ignored programs
}

// Abandoned says what was lost because pins of an earlier run were there that this program cannot take up:
// another version's, other ring sizes', or incomplete ones. Zero after a clean stop of that run.
type Abandoned struct {
	Replaced bool               // there was such a run
	Unknown  bool               // its counters could not be read: how much was lost is not known
	Events   [NumClasses]uint64 // submitted by its programs and never handed on
}

// Load takes up the pins that a crashed sensor of the same instance left, or else loads, pins and attaches
// the programs anew.
//
// The error is a [*NotSupportedError] when the machine or the process's rights lack something, and is
// [ErrInUse] when another process owns the instance. It leaves nothing behind when it fails, except pins
// that were there before.
func Load(o Options) (*Kernel, error) {
	return load(o, probe)
}

// load takes what the kernel offers, so that the ways around what it does not are tested.
func load(o Options, probe func(*btf.Spec) (offers, error)) (_ *Kernel, err error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := CheckSupport(); err != nil {
		return nil, err
	}
	if err := mountBPFFS(o.BPFFS); err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting CPUs: %w", err)
	}
	k := &Kernel{
		dir:  filepath.Join(o.BPFFS, "picket", o.Instance),
		cpus: cpus,
	}
	k.lock, err = lockInstance(k.dir, o.Instance)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			k.release()
			k.unlock()
		}
	}()

	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("reading the kernel's type information: %w", err)
	}
	if k.offers, err = probe(types); err != nil {
		return nil, err
	}
	if err := k.offers.dnsAt(o.Cgroup2); err != nil {
		return nil, err
	}
	spec, err := newSpec(o, cpus, k.offers, types)
	if err != nil {
		return nil, err
	}
	k.run = runPrefix + identity(o, cpus, k.offers)

	found, err := findRun(k.dir)
	if err != nil {
		return nil, err
	}
	if found == k.run && k.open() == nil {
		k.resumed = true
	} else {
		k.release()
		if found != "" {
			k.abandoned = abandon(k.dir, found, cpus)
			if err := removeRun(k.dir, found); err != nil {
				return nil, err
			}
		}
		if err := k.create(spec, types, o.Cgroup2); err != nil {
			return nil, err
		}
		if err := k.open(); err != nil {
			return nil, errors.Join(err, removeRun(k.dir, k.run))
		}
	}
	if err := k.start(types); err != nil {
		if !k.resumed {
			err = errors.Join(err, removeRun(k.dir, k.run))
		}
		return nil, err
	}
	return k, nil
}

// newSpec returns the object with everything set that depends on machine and options.
func newSpec(o Options, cpus int, offers offers, types *btf.Spec) (*ebpf.CollectionSpec, error) {
	spec, err := loadObject()
	if err != nil {
		return nil, fmt.Errorf("reading the compiled programs: %w", err)
	}
	for class, size := range [NumClasses]int{o.ProcessRing, o.FileRing, o.NetworkRing, o.KernelRing, o.DNSRing} {
		spec.Maps[rings[class]].MaxEntries = uint32(size)
	}
	spec.Maps[mapCounters].MaxEntries = uint32(cpus * NumClasses)
	spec.Maps[mapLedger].MaxEntries = uint32(cpus * NumClasses)
	controller := uint32(0)
	if o.Controller != "" {
		if controller, err = controllerIndex(types, o.Controller); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(spec.Variables[objectVarExitTellsLast].Set(offers.exitTellsLast),
		spec.Variables[objectVarUringGivesResult].Set(offers.uringGivesResult),
		spec.Variables[objectVarDns].Set(offers.dns),
		spec.Variables[objectVarCgroupHierarchy].Set(int32(o.Hierarchy)),
		spec.Variables[objectVarCgroupController].Set(controller)); err != nil {
		return nil, fmt.Errorf("preparing the compiled programs: %w", err)
	}
	if !offers.dns {
		delete(spec.Programs, objectProgPicketDnsOut)
		delete(spec.Programs, objectProgPicketDnsIn)
	}
	if !offers.uring {
		delete(spec.Programs, objectProgPicketUring)
	}
	if err := setHooks(spec, offers); err != nil {
		return nil, err
	}
	return spec, nil
}

// identity names everything that must be the same for pins to be taken up.
func identity(o Options, cpus int, offers offers) string {
	h := sha256.New()
	h.Write(_ObjectBytes)
	fmt.Fprintln(h, LayoutVersion, o.ProcessRing, o.FileRing, o.NetworkRing, o.KernelRing, o.DNSRing, o.Cgroup2, o.Controller, o.Hierarchy, cpus, offers)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// create loads the object into the kernel, attaches and pins everything.
func (k *Kernel) create(spec *ebpf.CollectionSpec, types *btf.Spec, cgroup2 string) (err error) {
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{KernelTypes: types},
	})
	if err != nil {
		return fmt.Errorf("loading the programs into Linux %s (Picket needs 6.1 or later): %w", kernelRelease(), err)
	}
	defer coll.Close()
	fresh := filepath.Join(k.dir, newPrefix+strings.TrimPrefix(k.run, runPrefix))
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return fmt.Errorf("creating the pin directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(fresh))
		}
	}()

	for _, name := range pinned {
		if err := coll.Maps[name].Pin(mapPin(fresh, name)); err != nil {
			return fmt.Errorf("pinning map %s: %w", name, err)
		}
	}
	for name, prog := range coll.Programs {
		if err := prog.Pin(progPin(fresh, name)); err != nil {
			return fmt.Errorf("pinning program %s: %w", name, err)
		}
	}
	for _, name := range k.attached() {
		l, err := attach(name, coll.Programs[name], cgroup2)
		if err != nil {
			return fmt.Errorf("attaching program %s: %w", name, err)
		}
		err = l.Pin(linkPin(fresh, name))
		l.Close() // the pin holds it
		if err != nil {
			return fmt.Errorf("pinning the attachment of %s: %w", name, err)
		}
	}
	// From here on it is complete.
	if err := os.Rename(fresh, filepath.Join(k.dir, k.run)); err != nil {
		return fmt.Errorf("pinning: %w", err)
	}
	return nil
}

func attach(name string, prog *ebpf.Program, cgroup2 string) (link.Link, error) {
	if at, ok := dnsPrograms[name]; ok {
		return link.AttachCgroup(link.CgroupOptions{Path: cgroup2, Attach: at, Program: prog})
	}
	return link.AttachTracing(link.TracingOptions{Program: prog})
}

// open opens all pins of the run.
func (k *Kernel) open() error {
	dir := filepath.Join(k.dir, k.run)
	k.maps, k.progs, k.links = map[string]*ebpf.Map{}, map[string]*ebpf.Program{}, map[string]link.Link{}
	for _, name := range pinned {
		m, err := ebpf.LoadPinnedMap(mapPin(dir, name), nil)
		if err != nil {
			return fmt.Errorf("opening pinned map %s: %w", name, err)
		}
		k.maps[name] = m
	}
	for _, name := range append([]string{objectProgPicketSetSelf}, k.attached()...) {
		p, err := ebpf.LoadPinnedProgram(progPin(dir, name), nil)
		if err != nil {
			return fmt.Errorf("opening pinned program %s: %w", name, err)
		}
		k.progs[name] = p
	}
	for _, name := range k.attached() {
		l, err := link.LoadPinnedLink(linkPin(dir, name), nil)
		if err != nil {
			return fmt.Errorf("opening the pinned attachment of %s: %w", name, err)
		}
		k.links[name] = l
	}
	return nil
}

// start makes this process the one that reads.
func (k *Kernel) start(types *btf.Spec) error {
	if _, err := k.progs[objectProgPicketSetSelf].Run(nil); err != nil {
		return fmt.Errorf("telling the programs who the sensor is: %w", err)
	}
	// From here on nobody else writes the settings: see Check.
	config := k.config[:]
	if err := k.maps[mapConfig].Lookup(uint32(0), &config); err != nil {
		return fmt.Errorf("reading the programs' settings: %w", err)
	}
	var err error
	if k.counters, err = k.maps[mapCounters].Memory(); err != nil {
		return fmt.Errorf("mapping the counters: %w", err)
	}
	mem, err := k.maps[mapLedger].Memory()
	if err != nil {
		return fmt.Errorf("mapping the ledger: %w", err)
	}
	k.ledger = &Ledger{mem: mem, cpus: k.cpus}
	counters, err := readCounters(k.counters, k.cpus)
	if err != nil {
		return err
	}
	first, err := ringFirst(types)
	if err != nil {
		return err
	}
	for class, name := range rings {
		r, err := newReader(Class(class), k.maps[name], first)
		if err != nil {
			return err
		}
		k.readers = append(k.readers, r)
		if k.resumed {
			r.takeUp(counters, k.ledger)
		}
	}
	return nil
}

// abandon stops a run that cannot be taken up, and finds out how much was not handed on.
func abandon(dir, run string, cpus int) Abandoned {
	a := Abandoned{Replaced: true}
	run = filepath.Join(dir, run)
	for _, name := range programs {
		// What cannot be unpinned now is removed with the directory, whose errors are reported.
		_ = os.Remove(linkPin(run, name))
	}
	for _, h := range hooks {
		_ = os.Remove(linkPin(run, h.program))
	}
	counters, err := openArray(mapPin(run, mapCounters), counterWords*8, cpus)
	if err != nil {
		a.Unknown = true
		return a
	}
	defer counters.Close()
	ledger, err := openArray(mapPin(run, mapLedger), 8, cpus)
	if err != nil {
		a.Unknown = true
		return a
	}
	defer ledger.Close()
	words := make([]uint64, counterWords)
	for i := range uint32(cpus * NumClasses) {
		var handedOn uint64
		if counters.Lookup(i, &words) != nil || ledger.Lookup(i, &handedOn) != nil {
			a.Unknown = true
			return a
		}
		a.Events[i%NumClasses] += words[counterSubmitted] - handedOn
	}
	return a
}

// openArray opens a pinned array over (CPU, class) if it is of the shape this program knows.
func openArray(pin string, valueSize, cpus int) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return nil, err
	}
	if m.Type() != ebpf.Array || m.ValueSize() != uint32(valueSize) || m.MaxEntries() != uint32(cpus*NumClasses) {
		m.Close()
		return nil, fmt.Errorf("pinned map %s has another shape", pin)
	}
	return m, nil
}

// Pin names have no dots: BPF file systems refuse them.
func mapPin(dir, name string) string {
	return filepath.Join(dir, "map_"+strings.TrimPrefix(name, ".data."))
}
func progPin(dir, name string) string { return filepath.Join(dir, "prog_"+name) }
func linkPin(dir, name string) string { return filepath.Join(dir, "link_"+name) }

// Readers returns one Reader per class, in the order of the classes.
func (k *Kernel) Readers() []*Reader { return k.readers }

// Ledger returns where to note what was handed on.
func (k *Kernel) Ledger() *Ledger { return k.ledger }

// CPUs returns how many CPUs the machine can have: the bound of Header.CPU.
func (k *Kernel) CPUs() int { return k.cpus }

// Resumed reports whether Load took up the pins of an earlier run. The Readers then begin with what that
// run left in the rings, and count what it lost: see [Reader.Lost].
func (k *Kernel) Resumed() bool { return k.resumed }

// Abandoned returns what Load lost of an earlier run that it could not take up.
func (k *Kernel) Abandoned() Abandoned { return k.abandoned }

// attached are the programs that run on their own on this kernel.
func (k *Kernel) attached() []string {
	return append(slices.DeleteFunc(slices.Clone(programs), func(name string) bool {
		_, dns := dnsPrograms[name]
		return name == objectProgPicketUring && !k.offers.uring || name == objectProgPicketUringSubmit && k.offers.uringSubmit == "" || dns && !k.offers.dns
	}), k.offers.hooks...)
}

// Unseen says, a sentence each, what cannot be seen on this kernel because it lacks what would show it.
func (k *Kernel) Unseen() []string {
	var unseen []string
	if !k.offers.uring {
		unseen = append(unseen, "what is done through io_uring: the kernel has no tracepoint io_uring_complete")
	} else if k.offers.uringSubmit == "" {
		unseen = append(unseen, "changes of files through io_uring: the kernel has no tracepoint io_uring_submit_req, nor io_uring_submit_sqe")
	}
	if !k.offers.dns {
		unseen = append(unseen, "DNS: "+k.offers.noDNS)
	}
	return unseen
}

// Counters returns what the kernel has counted, an entry per CPU and class, ordered by both. They go on
// counting meanwhile: an event under way may be in some and not in others.
func (k *Kernel) Counters() ([]ClassCounters, error) {
	return readCounters(k.counters, k.cpus)
}

// Missed returns how often the kernel did not run a program because it was running on that CPU already:
// events in it were neither seen nor counted elsewhere.
func (k *Kernel) Missed() (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return 0, errClosed
	}
	var n uint64
	for _, name := range k.attached() {
		stats, err := k.progs[name].Stats()
		if err != nil {
			return 0, fmt.Errorf("asking for the statistics of program %s: %w", name, err)
		}
		n += stats.RecursionMisses
	}
	return n, nil
}

// Detach stops the programs, for good: once it returns, no event follows those that are in the rings, which
// can then be read to their end before Close. Should the process die before Close, the next Load counts what
// was not handed on as [Abandoned].
func (k *Kernel) Detach() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	return k.detach()
}

func (k *Kernel) detach() error {
	// The kernel takes its time to detach a program. The setting works at once, for programs that begin
	// after it; those that began before have ended when membarrier returns, which waits for an RCU grace
	// period. Where it is not to be had, far more time than a program takes does as well.
	if err := k.set(configStopped, 1); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(50 * time.Millisecond)
	}
	var errs []error
	for name, l := range k.links {
		if err := l.Unpin(); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, l.Close())
		delete(k.links, name)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detaching the programs: %w", err)
	}
	return nil
}

const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h

// Layout of struct config (lib/maps.h); layout_test.go compares it.
const (
	configWatching    = 4
	configStopped     = 16
	configEnvironment = 20
	configShare       = 24
	configIgnoring    = 32
	configGeneration  = 36
	configHostMntNS   = 40
	configHostRootDev = 44
	configUnwanted    = 48
	configBeginnings  = 80
	configShort       = 336
	configBytes       = 344
)

// SetEnvironment sets whether an exec event has the program's environment.
func (k *Kernel) SetEnvironment(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	value := uint32(0)
	if on {
		value = 1
	}
	return k.set(configEnvironment, value)
}

// SetHost tells of the host's mount namespace, by inode number, and of the file system that is its root directory: dev is
// its number as stat(2) gives it, 0 where the root directory is only a part of it. Files that processes of other
// namespaces open then have their path in the file's own file system, and on that one it is watched, too. Without, they
// have not.
func (k *Kernel) SetHost(mntNS uint32, dev uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	kernelDev := uint32(0)
	if dev != 0 {
		kernelDev = unix.Major(dev)<<20 | unix.Minor(dev)
	}
	return k.write(configHostMntNS, binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, mntNS), kernelDev))
}

// SetShare sets how many events of the classes file and network each cgroup may add to the class's ring within 134 ms
// while that is more than three quarters full; 0: as many as there are.
func (k *Kernel) SetShare(events uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	return k.write(configShare, binary.LittleEndian.AppendUint64(nil, events))
}

// Limited is how many events of a cgroup were left out, since the programs were loaded.
type Limited struct {
	CgroupID uint64
	Class    Class
	Events   uint64
}

// Limited returns the cgroups of which events were left out, as far as the kernel remembers them: ClassCounters has
// the whole number.
func (k *Kernel) Limited() ([]Limited, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed
	}
	var out []Limited
	var key [2]uint64   // struct share_key
	var value [3]uint64 // struct share
	it := k.maps[objectMapShares].Iterate()
	for it.Next(&key, &value) {
		if value[2] > 0 {
			out = append(out, Limited{key[0], Class(key[1]), value[2]})
		}
	}
	// An entry that goes while it is looked at is not an error.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("reading which cgroups were limited: %w", err)
	}
	return out, nil
}

// SetUnwanted replaces the set of system calls that are no events: names as [Event.Syscall] has them; "close" is the
// end of TCP connections. They are not looked at, and not counted. What makes, changes or ends processes cannot be left
// out.
func (k *Kernel) SetUnwanted(calls []string) error {
	var mask [4]uint64
	for _, name := range calls {
		i := slices.Index(callNames[:], name)
		if i <= 0 || strings.HasPrefix(name, "exec") || strings.HasSuffix(name, "fork") || strings.HasPrefix(name, "clone") {
			return fmt.Errorf("%q is no system call that can be left out", name)
		}
		mask[i/64] |= 1 << (i % 64)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	var b []byte
	for _, m := range mask {
		b = binary.LittleEndian.AppendUint64(b, m)
	}
	return k.write(configUnwanted, b)
}

// set writes one of the programs' settings. The others are not written meanwhile: those that user space
// does not own are written while it loads.
func (k *Kernel) set(offset int, value uint32) error {
	return k.write(offset, binary.LittleEndian.AppendUint32(nil, value))
}

func (k *Kernel) write(offset int, value []byte) error {
	copy(k.config[offset:], value)
	if err := k.maps[mapConfig].Put(uint32(0), k.config[:]); err != nil {
		return fmt.Errorf("writing the programs' settings: %w", err)
	}
	return nil
}

// Close interrupts the readers and gives the instance up. With keep everything goes on in the kernel, for
// the next Load to take up; otherwise all is detached, unpinned and freed, and what is still in the rings
// is gone. A second Close does nothing.
func (k *Kernel) Close(keep bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	var errs []error
	if !keep {
		errs = append(errs, k.detach(), removeRun(k.dir, k.run))
	}
	errs = append(errs, k.release())
	if !keep {
		errs = append(errs, os.Remove(k.dir))
		// The directory of all instances goes with the last of them.
		_ = os.Remove(filepath.Dir(k.dir))
	}
	errs = append(errs, k.unlock())
	return errors.Join(errs...)
}

// release closes what is open, and leaves pins alone.
func (k *Kernel) release() error {
	var errs []error
	for _, r := range k.readers {
		errs = append(errs, r.close())
	}
	for _, l := range k.links {
		errs = append(errs, l.Close())
	}
	for _, p := range k.progs {
		errs = append(errs, p.Close())
	}
	for _, m := range k.maps {
		errs = append(errs, m.Close())
	}
	k.links, k.progs, k.maps = nil, nil, nil
	return errors.Join(errs...)
}

func (k *Kernel) unlock() error { return k.lock.Close() }

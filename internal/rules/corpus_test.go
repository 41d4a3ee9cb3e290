package rules_test

import (
	"fmt"
	"math/rand/v2"

	"picket/internal/batch"
	"picket/schemas"
)

// corpus makes batches of what a busy node does: web servers and their health
// checks, builds, package installation, cron, containers. Its proportions are
// those of a node with a few dozen pods; nothing in it is an attack.
type corpus struct {
	rnd   *rand.Rand
	procs []proc
}

type proc struct {
	name, exe, args  string
	pname, pexe      string
	pargs            string
	ancestors, aexes []string
	container, image string
	uid, tty, pid    uint32
}

func newCorpus(seed uint64) *corpus {
	c := &corpus{rnd: rand.New(rand.NewPCG(seed, 1))}
	names := []string{"nginx", "node", "python3", "java", "postgres", "redis-server", "sh", "bash", "cat", "grep", "sed", "awk", "ls",
		"curl", "go", "compile", "link", "gcc", "cc1", "as", "ld", "make", "git", "dpkg", "apt-get", "systemd", "cron", "runc", "containerd-shim",
		"kubelet", "coredns", "envoy", "sleep", "ps", "id", "date", "test", "head", "tail", "sort", "tar", "gzip", "sshd", "sudo", "rsyslogd"}
	trees := [][]string{{"systemd"}, {"containerd-shim", "systemd"}, {"bash", "sshd", "sshd", "systemd"}, {"sh", "make", "make", "bash", "sshd", "systemd"},
		{"go", "bash", "sshd", "systemd"}, {"sh", "cron", "cron", "systemd"}, {"node", "sh", "containerd-shim", "systemd"}, {"dpkg", "apt-get", "sudo", "bash", "sshd", "systemd"}}
	for i := range 600 {
		name := names[c.rnd.IntN(len(names))]
		tree := trees[c.rnd.IntN(len(trees))]
		p := proc{name: name, exe: "/usr/bin/" + name, pname: tree[0], pexe: "/usr/bin/" + tree[0], ancestors: tree, pid: uint32(1000 + i)}
		p.args = fmt.Sprintf("--config /etc/%s/%s.conf --worker %d -c %d", name, name, i%17, i%5)
		p.pargs = fmt.Sprintf("-s %d", i%7)
		for _, a := range tree {
			p.aexes = append(p.aexes, "/usr/bin/"+a)
		}
		if c.rnd.IntN(3) > 0 && name != "dpkg" && name != "apt-get" {
			n := c.rnd.IntN(24)
			p.container = fmt.Sprintf("%064x", n+1)
			p.image = fmt.Sprintf("registry.example.test/team/app%d", n%9)
			p.uid = uint32(1000 * (n % 2))
		}
		c.procs = append(c.procs, p)
	}
	return c
}

// node returns a batch of rows events of a class of kernel events.
func (c *corpus) node(class schemas.Class, rows int) *batch.Batch {
	b := batch.NewBuilder(class, schemas.Columns(class))
	for i := range rows {
		p := &c.procs[c.rnd.IntN(len(c.procs))]
		for class == schemas.Network && (p.name == "sh" || p.name == "bash") {
			p = &c.procs[c.rnd.IntN(len(c.procs))]
		}
		b.Uint64(schemas.Sequence, uint64(i+1))
		b.Int64(schemas.EventTime, 1_800_000_000_000_000_000+int64(i)*1000)
		b.Uint64(schemas.TimeBoot, 5_000_000_000_000+uint64(i)*1000)
		b.Uint64(schemas.ProcessStartBoot, 1_000_000_000_000+uint64(p.pid)*1e9)
		b.Uint32(schemas.ProcessPID, p.pid)
		b.Uint32(schemas.ThreadID, p.pid)
		b.Str(schemas.ProcessName, p.name)
		b.Str(schemas.ProcessExe, p.exe)
		b.Str(schemas.ProcessCommand, p.name)
		b.Str(schemas.ProcessArgs, p.args)
		b.Str(schemas.ProcessCwd, "/srv/app")
		b.Uint32(schemas.ProcessTTY, p.tty)
		b.Uint32(schemas.ProcessUserID, p.uid)
		b.Int64(schemas.ProcessLoginUserID, -1)
		b.Str(schemas.ParentName, p.pname)
		b.Str(schemas.ParentExe, p.pexe)
		b.Str(schemas.ParentCommand, p.pname)
		b.Str(schemas.ParentArgs, p.pargs)
		b.List(schemas.AncestorNames, p.ancestors)
		b.List(schemas.AncestorExes, p.aexes)
		b.List(schemas.AncestorCommands, p.aexes)
		b.List(schemas.AncestorArgs, p.ancestors)
		b.List(schemas.AncestorPIDs, []string{"12", "1"})
		b.Uint64(schemas.ProcessCapEffective, 0xa80425fb)
		b.Str(schemas.ContainerID, p.container)
		b.Str(schemas.ContainerImage, p.image)
		if p.container != "" {
			b.Str(schemas.Namespace, "shop")
			b.Str(schemas.PodName, "web-"+p.container[62:])
		}
		switch class {
		case schemas.Process:
			c.process(b, p)
		case schemas.File:
			c.file(b)
		default:
			c.network(b)
		}
		b.EndRow()
	}
	return b.Batch()
}

func (c *corpus) process(b *batch.Builder, p *proc) {
	switch c.rnd.IntN(3) {
	case 0:
		b.Str(schemas.Action, "exec")
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.ExecFilename, p.exe)
		b.Uint64(schemas.ExeInode, uint64(len(p.exe)))
		b.List(schemas.ProcessArgv, []string{p.name, "--config", "x"})
	case 1:
		b.Str(schemas.Action, "fork")
		b.Str(schemas.Syscall, "clone")
		b.Int64(schemas.Result, int64(p.pid))
	default:
		b.Str(schemas.Action, "exit")
		b.Str(schemas.Syscall, "procexit")
		b.Int64(schemas.ExitCode, 0)
	}
}

func (c *corpus) file(b *batch.Builder) {
	dirs := []string{"/var/log/app", "/tmp/go-build1", "/srv/app/data", "/var/lib/postgresql/16/main/base", "/usr/share/doc", "/home/dev/src", "/proc/self"}
	b.Str(schemas.Action, "open")
	b.Str(schemas.Syscall, "openat")
	fd := int64(3 + c.rnd.IntN(40))
	b.Int64(schemas.Result, fd)
	b.Int64(schemas.FDNumber, fd)
	b.Str(schemas.FilePath, fmt.Sprintf("%s/f%d.dat", dirs[c.rnd.IntN(len(dirs))], c.rnd.IntN(150)))
	write := c.rnd.IntN(10) > 0
	b.Bool(schemas.FileWrite, write)
	b.Bool(schemas.FileRead, !write || c.rnd.IntN(3) == 0)
	b.Uint32(schemas.FileFlags, map[bool]uint32{true: 0o2101101, false: 0o2000000}[write])
	b.Bool(schemas.FileCreated, write && c.rnd.IntN(2) == 0)
	b.Uint32(schemas.FileMode, 0o100644)
}

func (c *corpus) network(b *batch.Builder) {
	out := c.rnd.IntN(3) > 0
	b.Str(schemas.NetTransport, "tcp")
	b.Str(schemas.NetType, "ipv4")
	b.Int64(schemas.FDNumber, int64(5+c.rnd.IntN(20)))
	b.Bytes16(schemas.NetLocalAddress, batch.IPv4([4]byte{10, 0, 0, byte(c.rnd.IntN(30))}))
	peer := batch.IPv4([4]byte{10, 0, 1, byte(c.rnd.IntN(200))})
	if c.rnd.IntN(4) == 0 {
		peer = batch.IPv4([4]byte{198, 51, 100, byte(c.rnd.IntN(200))})
	}
	b.Bytes16(schemas.NetPeerAddress, peer)
	if out {
		b.Str(schemas.Action, "connect")
		b.Str(schemas.Syscall, "connect")
		b.Str(schemas.NetDirection, "outbound")
		b.Uint32(schemas.NetLocalPort, uint32(32768+c.rnd.IntN(20000)))
		b.Uint32(schemas.NetPeerPort, []uint32{443, 80, 5432, 6379, 53}[c.rnd.IntN(5)])
		b.Int64(schemas.Result, -115)
		return
	}
	b.Str(schemas.Action, "accept")
	b.Str(schemas.Syscall, "accept4")
	b.Str(schemas.NetDirection, "inbound")
	b.Uint32(schemas.NetLocalPort, 8080)
	b.Uint32(schemas.NetPeerPort, uint32(32768+c.rnd.IntN(20000)))
}

// audit returns a batch of what a cluster's own parts and its people do.
func (c *corpus) audit(rows int) *batch.Batch {
	b := batch.NewBuilder(schemas.Audit, schemas.Columns(schemas.Audit))
	users := []string{"system:node:node-1", "system:kube-controller-manager", "system:kube-scheduler", "system:serviceaccount:kube-system:replicaset-controller", "alice", "system:serviceaccount:shop:builder"}
	for range rows {
		b.Str(schemas.Action, "audit")
		b.Str(schemas.AuditStage, []string{"ResponseComplete", "ResponseComplete", "ResponseComplete", "ResponseStarted"}[c.rnd.IntN(4)])
		verb := []string{"get", "list", "watch", "update", "patch", "create"}[c.rnd.IntN(6)]
		b.Str(schemas.AuditVerb, verb)
		b.Str(schemas.AuditUser, users[c.rnd.IntN(len(users))])
		b.Str(schemas.AuditResource, []string{"leases", "pods", "configmaps", "endpointslices", "events", "nodes", "services"}[c.rnd.IntN(7)])
		b.Str(schemas.AuditNamespace, []string{"shop", "default", "kube-node-lease"}[c.rnd.IntN(3)])
		b.Str(schemas.AuditName, fmt.Sprintf("object-%d", c.rnd.IntN(300)))
		b.Str(schemas.AuditURI, fmt.Sprintf("/api/v1/namespaces/shop/pods/p%d?timeout=10s", c.rnd.IntN(300)))
		b.Int64(schemas.AuditResponseCode, 200)
		b.Str(schemas.AuditDecision, "allow")
		b.List(schemas.AuditUserGroups, []string{"system:authenticated"})
		b.Str(schemas.AuditRequest, `{"kind":"Pod","metadata":{"name":"web","labels":{"app":"web"}},"spec":{"volumes":[{"name":"data","emptyDir":{}}],"containers":[{"name":"c","image":"registry.example.test/app:1.2","args":["serve","--port","8080"],"securityContext":{"privileged":false,"capabilities":{"drop":["ALL"]}}}]}}`)
		b.EndRow()
	}
	return b.Batch()
}

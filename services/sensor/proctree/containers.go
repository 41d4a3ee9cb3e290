package proctree

// A runtime starts a container's first process, and later puts others into the
// running container (kubectl exec, docker exec, an exec probe). Both look the
// same: a process whose parent is not of the container runs a program in its
// cgroup and in a mount namespace of its own. The first is the container's
// start, the others are exec roots. The runtime's own stages (runc init) are in
// the container's cgroup too, and still see their maker's mounts.

// entered is a container's start: while it lives, the container runs.
type entered struct {
	pid   uint32
	start uint64
}

// enter sets what a process is to the container that it begins to run a
// program in, after n.proc was replaced by p. The caller holds the lock.
func (t *Tree) enter(n *node, p *Proc, container string) {
	if container == "" || p.Container == container {
		return
	}
	var parent *Proc
	if n.proc.parent != nil {
		parent = n.proc.parent.proc
	}
	first, runs := t.starts[container]
	switch {
	case parent == nil: // forked while nobody watched: taken for one of the container's own
		p.ContainerExec = 0
	case parent.Container == container:
		p.ContainerExec = parent.ContainerExec
	case p.MntNS != 0 && p.MntNS == parent.MntNS:
		return // a runtime's stage, where the runtime is in a container itself
	case !runs:
		first = entered{p.PID, p.Start}
		t.starts[container] = first
		p.ContainerExec = 0
	case first.pid == p.PID && same(first.start, p.Start):
		p.ContainerExec = 0
	default:
		p.ContainerExec = p.PID
	}
	p.Container, p.ContainerStart = container, first.start
}

// leave forgets a container whose start is gone. The caller holds the lock.
func (t *Tree) leave(p *Proc) {
	if first, ok := t.starts[p.Container]; ok && first.pid == p.PID && same(first.start, p.Start) {
		delete(t.starts, p.Container)
	}
}

// Starts returns how many running containers are known by their first process.
func (t *Tree) Starts() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.starts)
}

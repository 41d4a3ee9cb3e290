package rules

import (
	"slices"
	"strings"

	"picket/schemas"
)

// Need is what a rule needs of sensors: one event of any of these suffices.
type Need struct {
	Rule *Rule
	// Calls are, by event class, the values of evt.type with which the rule's
	// condition can hold; a class without values of evt.type has none.
	Calls map[schemas.Class][]string
}

// Fed reports whether a sensor feeds the rule that reports some classes and
// leaves out some calls.
func (n Need) Fed(classes schemas.ClassSet, unwanted []string) bool {
	for c, calls := range n.Calls {
		if !classes.Has(c) {
			continue
		}
		if len(classSyscalls[c]) == 0 || slices.ContainsFunc(calls, func(call string) bool { return !slices.Contains(unwanted, call) }) {
			return true
		}
	}
	return false
}

// String names the classes and, where they are few, the calls.
func (n Need) String() string {
	var parts []string
	for _, c := range schemas.Classes() {
		calls, ok := n.Calls[c]
		switch {
		case !ok:
		case len(calls) == 0 || len(calls) == len(classSyscalls[c]) || len(calls) > 4:
			parts = append(parts, "class "+c.String())
		default:
			parts = append(parts, strings.Join(calls, ", "))
		}
	}
	return strings.Join(parts, ", ")
}

// Needs returns what the enabled rules need that read events of sensors. It
// evaluates every condition once for each system call: call it seldom.
func (s *Set) Needs() []Need {
	needs := make(map[*Rule]*Need)
	for c, p := range s.programs {
		class := schemas.Class(c)
		if p == nil || !nodeClasses.Has(class) {
			continue
		}
		f := feeder{p: p, memo: make([]truthValue, len(p.nodes))}
		for _, call := range classSyscalls[class] {
			f.of(call)
			for _, g := range p.groups {
				for _, r := range g.rules {
					if f.edge(r.root) == never {
						continue
					}
					n := needs[r.rule]
					if n == nil {
						n = &Need{Rule: r.rule, Calls: make(map[schemas.Class][]string)}
						needs[r.rule] = n
					}
					n.Calls[class] = append(n.Calls[class], call)
				}
			}
		}
	}
	var out []Need
	for _, r := range s.rules {
		if n := needs[r]; n != nil {
			out = append(out, *n)
		}
	}
	return out
}

// truthValue is what is known of a condition before an event is seen.
type truthValue uint8

const (
	unasked truthValue = iota
	never
	maybe
	always
)

func (t truthValue) not() truthValue {
	switch t {
	case never:
		return always
	case always:
		return never
	}
	return t
}

// feeder evaluates conditions for events of one system call of which nothing
// else is known.
type feeder struct {
	p             *program
	memo          []truthValue
	call, actions []string
}

func (f *feeder) of(call string) {
	clear(f.memo)
	f.call, f.actions = []string{call}, actionsOf(f.p.class, call)
}

func (f *feeder) edge(e edge) truthValue {
	switch {
	case e == edgeTrue:
		return always
	case e == edgeFalse:
		return never
	}
	v := f.memo[e.id()]
	if v == unasked {
		v = f.node(&f.p.nodes[e.id()])
		f.memo[e.id()] = v
	}
	if e.isNot() {
		return v.not()
	}
	return v
}

func (f *feeder) node(n *node) truthValue {
	if p := n.pred; p != nil {
		var values []string
		switch p.operand.ref {
		case "evt.type":
			values = f.call
		case "evt.action":
			values = f.actions
		}
		if p.match == nil {
			return maybe
		}
		holds := 0
		for _, v := range values {
			if p.match.match(v) {
				holds++
			}
		}
		switch {
		case len(values) == 0 || holds > 0 && holds < len(values):
			return maybe
		case holds > 0:
			return always
		}
		return never
	}
	v := always
	for _, k := range n.kids {
		switch f.edge(k) {
		case never:
			return never
		case maybe:
			v = maybe
		}
	}
	return v
}

// callActions are the values of evt.action by those of evt.type, where they are
// not the same and not in schemas.Calls.
var callActions = map[string]string{
	"execve": "exec", "execveat": "exec", "vfork": "fork", "clone": "fork", "clone3": "fork", "procexit": "exit",
	"openat": "open", "openat2": "open", "creat": "open", "open_by_handle_at": "open",
	"renameat": "rename", "renameat2": "rename", "mkdirat": "mkdir", "linkat": "link", "symlinkat": "symlink",
	"fchmod": "chmod", "fchmodat": "chmod", "fchmodat2": "chmod", "lchown": "chown", "fchown": "chown", "fchownat": "chown",
	"mknodat": "mknod", "ftruncate": "truncate", "utime": "utimes", "futimesat": "utimes", "utimensat": "utimes",
	"lsetxattr": "setxattr", "fsetxattr": "setxattr", "setxattrat": "setxattr",
	"lremovexattr": "removexattr", "fremovexattr": "removexattr", "removexattrat": "removexattr",
	"accept4": "accept", "dup2": "dup", "dup3": "dup", "fcntl": "dup", "sendto": "send", "sendmsg": "send", "sendmmsg": "send",
}

// actionsOf returns the values of evt.action that events of a call have.
func actionsOf(class schemas.Class, call string) []string {
	switch {
	case class == schemas.DNS:
		return []string{"query", "response"}
	case call == "unlinkat": // of a file or, with AT_REMOVEDIR, of a folder
		return []string{"unlink", "rmdir"}
	case class == schemas.Kernel:
		for _, c := range schemas.Calls() {
			if c.Name == call {
				return []string{c.Action}
			}
		}
	}
	if a, ok := callActions[call]; ok {
		return []string{a}
	}
	return []string{call}
}

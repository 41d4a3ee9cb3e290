package bpf

import "slices"

// Syscall returns the name of the system call that the event is of; "" where it is of none.
func (ev *Event) Syscall() string {
	var call uint32
	switch ev.Header.Action {
	case ActionExec:
		if ev.Exec.Flags&ExecFD != 0 {
			return "execveat"
		}
		return "execve"
	case ActionFork:
		call = ev.Fork.Call
	case ActionOpen:
		call = ev.Open.Call
	case ActionConnect, ActionAccept, ActionDup, ActionSocket, ActionBind, ActionListen, ActionSend, ActionClose:
		call = ev.Conn.Call
	case ActionCall:
		call = ev.Call.Call
	case ActionExit:
		return ""
	default:
		call = ev.Path.Call
	}
	if int64(call) >= int64(len(callNames)) {
		return ""
	}
	return callNames[call]
}

// Calls returns the names of the calls that make events of a class which can be left out: see Kernel.SetUnwanted. Class
// process has none, class dns is not made by calls.
func Calls(class Class) []string {
	between := func(first, last string) []string {
		return callNames[slices.Index(callNames[:], first) : slices.Index(callNames[:], last)+1]
	}
	switch class {
	case ClassFile:
		return slices.Concat(between("open", "open_by_handle_at"), between("rename", "removexattrat"))
	case ClassNetwork:
		return append(slices.Clone(between("connect", "sendmmsg")), "close")
	case ClassKernel:
		return slices.Concat(between("setuid", "syslog"), between("kill", "commit_creds"))
	}
	return nil
}

package bpf

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

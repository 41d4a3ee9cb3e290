package bpf

// oldChanges: this architecture never had them.
func oldChanges(func(string, PathFields) PathEvent, func(string, string, PathFields) PathEvent) []change {
	return nil
}

package rules

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"picket/schemas"
)

// What the fields are in SQL. A plain column needs no entry; a field that the
// evaluator computes has one in sqlFields, or cannot be hunted.

// text returns the operand as text, empty where there is no value.
func (s *SQL) text(o *operand) (sqlValue, bool) {
	if e := o.field.either; e[1] != "" { // the remote end, as in an output
		return s.text(&operand{field: fieldTable[e[1]], ref: e[1], kind: o.kind})
	}
	v, ok := s.operand(o)
	if !ok || o.kind == kindText {
		return v, ok
	}
	switch o.kind {
	case kindList:
		v.value = "arrayStringConcat(" + v.value + ", ',')"
	case kindBool:
		v.value = "if(" + v.value + ", 'true', 'false')"
	case kindIP, kindNet:
		v.value = addressText(v.value)
	default:
		v.value = "toString(" + v.value + ")"
	}
	if v.present != "" {
		v.value = "if(" + v.present + ", " + v.value + ", '')"
	}
	return sqlValue{value: s.column(o.ref+"_text", v.value)}, true
}

// output returns the operand as the output of a rule shows it.
func (s *SQL) output(o *operand) (string, bool) {
	v, ok := s.shown(o)
	if v.present == "" {
		return v.value, ok
	}
	return "if(" + v.present + ", " + v.value + ", " + sqlString(notThere) + ")", ok
}

// shown returns the operand as text with the condition that it is there, which is
// empty where it always is.
func (s *SQL) shown(o *operand) (sqlValue, bool) {
	v, ok := s.text(o)
	switch {
	case !ok:
		return sqlValue{}, false
	case o.empty() && o.reader(s.class) != nil:
		v.present = ""
	case o.kind == kindList: // one of empty texts is there
		list, _ := s.operand(o)
		v.present = "notEmpty(" + list.value + ")"
	default:
		v.present = v.value + " != ''"
	}
	return v, true
}

// sql returns the operand in class c; false where there is no expression for
// it. What the class does not have is absent.
func (o *operand) sql(c schemas.Class) (sqlValue, bool) {
	if o.of != nil {
		return o.derivedSQL(c)
	}
	r := o.reader(c)
	switch {
	case r == nil:
		return absentSQL(o.kind), true
	case r.isColumn:
		return columnSQL(r.column, o.kind), true
	case r.isConst:
		return sqlValue{value: sqlString(r.constant)}, true
	case o.field.name == "jevt.value":
		return pointerSQL(o.arg.text)
	case o.field.path != "":
		return o.objectSQL(), true
	}
	if f := sqlFields[o.field.name]; f != nil {
		v := f(c, &o.arg)
		return v, v.value != ""
	}
	if name, ok := strings.CutPrefix(o.field.name, "evt.arg."); ok && c == schemas.Kernel {
		v := schemas.CallArguments.String() + "[" + sqlString(name) + "]"
		if o.kind == kindInt {
			return parsedSQL(v), true
		}
		return sqlValue{value: v}, true
	}
	return o.registrySQL(c)
}

// derivedSQL is what a transformer makes of an operand: see derive.
func (o *operand) derivedSQL(c schemas.Class) (sqlValue, bool) {
	v, ok := o.of.sql(c)
	switch {
	case !ok:
		return v, false
	case o.by != length:
		s, valid := o.by.sql(v.value)
		if valid != "" {
			s = "if(" + valid + ", " + s + ", '')"
		}
		return sqlValue{value: s}, true
	case o.of.kind == kindList:
		return sqlValue{"length(" + v.value + ")", "notEmpty(" + v.value + ")"}, true
	case o.of.empty():
		return sqlValue{value: "length(" + v.value + ")"}, true
	}
	return sqlValue{"length(" + v.value + ")", "(" + v.value + " != '')"}, true
}

func absentSQL(k kind) sqlValue {
	switch k {
	case kindText:
		return sqlValue{value: "''"}
	case kindList:
		return sqlValue{value: "emptyArrayString()"}
	case kindIP, kindNet:
		return sqlValue{value: "toIPv6('::')", present: "0"}
	}
	return sqlValue{value: "0", present: "0"}
}

// columnSQL is a column as it is.
func columnSQL(id schemas.FieldID, k kind) sqlValue {
	f := id.Field()
	v := sqlValue{value: f.Name}
	if f.Nullable {
		v = sqlValue{value: "assumeNotNull(" + f.Name + ")", present: "isNotNull(" + f.Name + ")"}
	}
	switch {
	case k == kindText && f.Type != schemas.Text && f.Type != schemas.Name: // a number that is compared as text
		v = sqlValue{value: "toString(" + f.Name + ")"}
		if f.Nullable {
			v.value = "ifNull(" + v.value + ", '')"
		}
	case f.Type == schemas.Time:
		v.value = "toUnixTimestamp64Nano(" + v.value + ")"
	case f.Type == schemas.IP:
		v.present = "(" + f.Name + " != toIPv6('::'))"
	}
	return v
}

// registrySQL is a field that the registry names and that is no plain column:
// an element of a list, a value of a map, an id.
func (o *operand) registrySQL(c schemas.Class) (sqlValue, bool) {
	for id := range schemas.FieldID(schemas.NumFields()) {
		f := id.Field()
		for _, name := range f.Rule {
			if name != o.field.name || !f.Classes.Has(c) {
				continue
			}
			switch f.Type {
			case schemas.List, schemas.Names:
				return sqlValue{value: nthSQL(id, o.arg.index)}, true
			case schemas.Map:
				return sqlValue{value: f.Name + "[" + sqlString(o.arg.text) + "]"}, true
			case schemas.ID:
				return sqlValue{value: "toString(" + f.Name + ")"}, true
			}
		}
	}
	return sqlValue{}, false
}

// objectSQL is a field of a request's or response's object.
func (o *operand) objectSQL() sqlValue {
	path := strings.Split(o.field.path, "/")
	if o.field.kind != kindList {
		return sqlValue{value: jsonText(o.field.document.String(), path)}
	}
	list := jsonList(o.field.document.String(), path)
	if o.field.shortened {
		list = `arrayMap(i -> replaceRegexpOne(splitByChar('@', i)[1], ':[^:/]*$', ''), ` + list + ")"
	}
	if o.arg.text != "" {
		return sqlValue{value: list + "[" + strconv.Itoa(o.arg.index+1) + "]"}
	}
	return sqlValue{value: list}
}

// pointerSQL is jevt.value.
func pointerSQL(arg string) (sqlValue, bool) {
	r, _ := pointer(arg)
	segments := strings.Split(arg[1:], "/")
	for i, s := range segments {
		segments[i] = strings.ReplaceAll(strings.ReplaceAll(s, "~1", "/"), "~0", "~")
	}
	for _, d := range pointerDocuments {
		if strings.HasPrefix(arg, d.prefix) {
			return sqlValue{value: jsonText(d.column.String(), segments[strings.Count(d.prefix, "/")-1:])}, true
		}
	}
	for p, id := range pointerLists {
		if arg == p {
			return sqlValue{value: fmt.Sprintf(`if(empty(%[1]s), '', replaceAll(toJSONString(%[1]s), '\\/', '/'))`, id)}, true
		}
		if rest, ok := strings.CutPrefix(arg, p+"/"); ok {
			i, _ := strconv.Atoi(rest) // pointer has parsed it
			return sqlValue{value: nthSQL(id, i)}, true
		}
	}
	switch {
	case len(segments) == 2 && segments[0] == "annotations":
		return sqlValue{value: schemas.AuditAnnotations.String() + "[" + sqlString(segments[1]) + "]"}, true
	case arg == "/responseStatus/code":
		return columnSQL(schemas.AuditResponseCode, kindText), true
	case arg == "/requestReceivedTimestamp" || arg == "/stageTimestamp":
		return sqlValue{value: "concat(replaceOne(substring(toString(time), 1, 19), ' ', 'T'), replaceRegexpOne(substring(toString(time), 20, 7), '[.]?0*$', ''), 'Z')"}, r != nil
	}
	return sqlValue{}, false
}

// sqlField writes a computed field in a class that has it; an empty value
// means that there is no expression.
type sqlField func(c schemas.Class, a *argument) sqlValue

// textual is a field whose expression is the same in every class.
func textSQL(expr string) sqlField {
	return func(schemas.Class, *argument) sqlValue { return sqlValue{value: expr} }
}

func numberSQL(expr, present string) sqlField {
	return func(schemas.Class, *argument) sqlValue { return sqlValue{value: expr, present: present} }
}

// perClass is a field whose expression depends on the class.
func perClass(m map[schemas.Class]string) sqlField {
	return func(c schemas.Class, _ *argument) sqlValue { return sqlValue{value: m[c]} }
}

func nthSQL(id schemas.FieldID, i int) string { return fmt.Sprintf("%s[%d]", id, i+1) }

// nanoseconds of a column of type Time; 0 for null.
func nanoseconds(id schemas.FieldID) string {
	s := "toUnixTimestamp64Nano(" + id.String() + ")"
	if id.Field().Nullable {
		s = "ifNull(" + s + ", 0)"
	}
	return s
}

// parsedSQL is the number that a text is.
func parsedSQL(x string) sqlValue {
	wide := "toInt128OrZero(" + x + ")"
	return sqlValue{value: "toInt64OrZero(" + x + ")",
		present: "(match(" + x + `, '^[+-]?0*[0-9]{1,19}$') AND ` + wide + " BETWEEN -9223372036854775808 AND 9223372036854775807)"}
}

func commandLineSQL(name, args schemas.FieldID) string {
	return fmt.Sprintf("if(%[2]s = '', %[1]s, concat(%[1]s, ' ', %[2]s))", name, args)
}

// ancestorSQL is the element of a list of ancestors, 0 being the process.
func ancestorSQL(self string, id schemas.FieldID) sqlField {
	return func(_ schemas.Class, a *argument) sqlValue {
		if a.index == 0 {
			return sqlValue{value: self}
		}
		return sqlValue{value: nthSQL(id, a.index-1)}
	}
}

// ancestorLineSQL is the command line of the ancestor whose number in the lists
// is i, from 1.
func ancestorLineSQL(i string) string {
	name, args := schemas.AncestorNames.String()+"["+i+"]", schemas.AncestorArgs.String()+"["+i+"]"
	return "multiIf(" + name + " = '', '', " + args + " = '', " + name + ", concat(" + name + ", ' ', " + args + "))"
}

// mapSQL is a map as name=value with a separator between.
func mapSQL(id schemas.FieldID) string {
	return fmt.Sprintf("arrayStringConcat(arrayMap((k, v) -> concat(k, '=', v), mapKeys(%[1]s), mapValues(%[1]s)), ' ')", id)
}

// namesSQL is the names of the bits of a mask from the lowest that have one.
func bitNames(mask string, names []string, separator string) string {
	return fmt.Sprintf("arrayStringConcat(arrayFilter((n, i) -> bitTest(%s, i), %s, range(%d)), %s)", mask, sqlArray(names), len(names), sqlString(separator))
}

// resultSQL is appendResult.
var resultSQL = func() string {
	var codes, names []string
	for i := 1; i < 4096; i++ {
		if n := unix.ErrnoName(syscall.Errno(i)); n != "" {
			codes, names = append(codes, strconv.Itoa(-i)), append(names, n)
		}
	}
	return "if(result >= 0, 'SUCCESS', transform(result, [" + strings.Join(codes, ", ") + "], " + sqlArray(names) + ", toString(result)))"
}()

var signalSQL = func() string {
	var numbers, names []string
	for i := range 128 {
		if n := unix.SignalName(syscall.Signal(i)); n != "" {
			numbers, names = append(numbers, strconv.Itoa(i)), append(names, n)
		}
	}
	const sig = "ifNull(process_exit_signal, 0)"
	return "if(action = 'exit', transform(" + sig + ", [" + strings.Join(numbers, ", ") + "], " + sqlArray(names) + ", toString(" + sig + ")), '')"
}()

const (
	createdSQL = "(file_created OR bitAnd(file_open_flags, 4259840) = 4259840)" // O_TMPFILE
	inboundSQL = "network_direction = 'inbound'"
	shortSQL   = "substring(container_id, 1, 12)"
)

// octalSQL is four octal digits without zeros before them.
func octalSQL(x string) string {
	digits := make([]string, 4)
	for i := range digits {
		digits[i] = fmt.Sprintf("toString(bitAnd(bitShiftRight(%s, %d), 7))", x, 9-3*i)
	}
	return "concat('0', replaceRegexpOne(concat(" + strings.Join(digits, ", ") + "), '^0{1,3}', ''))"
}

var modeSQL = "multiIf(action = 'open', " + octalSQL("file_mode") + ", action = 'mkdir', " + octalSQL("file_mode_new") +
	", action = 'chmod', " + bitNames("file_mode_new", chmodBits, "|") + ", '')"

// openFlagsSQL is appendOpenFlags.
var openFlagsSQL = func() string {
	var parts []string
	has := func(bits uint64) string { return fmt.Sprintf("bitAnd(file_open_flags, %d) = %d", bits, bits) }
	for _, f := range openFlags {
		cond := has(f.bits)
		switch f.name {
		case "O_DIRECTORY":
			cond += " AND NOT (" + has(0o20200000) + ")"
		case "O_DSYNC":
			cond += " AND NOT (" + has(0o4010000) + ")"
		}
		parts = append(parts, "if("+cond+", '"+f.name+"', '')")
	}
	parts = append(parts, "['O_RDONLY', 'O_WRONLY', 'O_RDWR', 'O_NONE'][bitAnd(file_open_flags, 3) + 1]")
	for _, f := range tailFlags {
		parts = append(parts, "if("+has(f.bits)+", '"+f.name+"', '')")
	}
	parts = append(parts, "if(file_created, 'F_CREATED', '')")
	return "arrayStringConcat(arrayFilter(f -> f != '', [" + strings.Join(parts, ", ") + "]), '|')"
}()

var familySQL = func() string {
	var from, to []string
	for _, k := range keysOf(familyNames) {
		from, to = append(from, k), append(to, familyNames[k])
	}
	return "transform(network_type, " + sqlArray(from) + ", " + sqlArray(to) + ", '')"
}()

// addressText is an address as package netip writes it.
func addressText(x string) string {
	group := func(i int) string {
		return fmt.Sprintf("lower(replaceRegexpOne(substring(hex(%s), %d, 4), '^0{1,3}', ''))", x, 4*i+1)
	}
	return "multiIf(" + mapped(x) + ", substring(IPv6NumToString(" + x + "), 8), " +
		// Here ClickHouse would write the last 32 bits as those of IPv4.
		x + " BETWEEN toIPv6('::1:0') AND toIPv6('::ffff:ffff'), concat('::', " + group(6) + ", ':', " + group(7) + "), IPv6NumToString(" + x + "))"
}

// endText is appendEnd.
func endText(ip, port string) string {
	unspecified := "(" + ip + " = toIPv6('::') AND network_type = 'ipv4')"
	a := addressText(ip)
	return "concat(multiIf(" + unspecified + ", '0.0.0.0', " + mapped(ip) + ", " + a + ", concat('[', " + a + ", ']')), ':', toString(bitAnd(" + port + ", 65535)))"
}

const (
	clientIPSQL   = "if(" + inboundSQL + ", network_peer_address, network_local_address)"
	serverIPSQL   = "if(" + inboundSQL + ", network_local_address, network_peer_address)"
	clientPortSQL = "if(" + inboundSQL + ", network_peer_port, network_local_port)"
	serverPortSQL = "if(" + inboundSQL + ", network_local_port, network_peer_port)"
)

var socketSQL = "multiIf(network_type = 'unix', network_socket_path, network_type NOT IN ('ipv4', 'ipv6') OR action = 'socket', '', " +
	"action IN ('bind', 'listen'), " + endText("network_local_address", "network_local_port") +
	", concat(" + endText(clientIPSQL, clientPortSQL) + ", '->', " + endText(serverIPSQL, serverPortSQL) + "))"

func portTextSQL(port string) sqlField {
	return textSQL("if(network_type IN ('ipv4', 'ipv6'), toString(" + port + "), '')")
}

func endSQL(ip string) sqlField { return numberSQL(ip, "("+ip+" != toIPv6('::'))") }

const (
	directorySQL = "multiIf(position(file_path, '/') = 0, '', length(splitByChar('/', file_path)[-1]) + 1 = length(file_path), '/', substring(file_path, 1, length(file_path) - length(splitByChar('/', file_path)[-1]) - 1))"
	fileTypeSQL  = "transform(bitAnd(file_mode, 61440), [16384, 4096, 49152], ['directory', 'pipe', 'unix'], 'file')"
)

// ofCalls is a column of the events of some system calls.
func ofCalls(id schemas.FieldID, calls ...string) string {
	return "if(syscall IN (" + sqlStrings(calls) + "), " + id.String() + ", '')"
}

func ofSocketSQL(expr string) sqlField { return textSQL("if(action = 'socket', " + expr + ", '')") }

// changesSQL is the argument of rename and link that is in one column for the one and
// in another for the other.
func changesSQL(rename, link schemas.FieldID) sqlField {
	return perClass(map[schemas.Class]string{schemas.File: fmt.Sprintf("multiIf(action = 'rename', %s, action = 'link', %s, '')", rename, link)})
}

// kernelArg adds to the expressions of an evt.arg field that of class kernel.
func kernelArg(name string, f sqlField) sqlField {
	return func(c schemas.Class, a *argument) sqlValue {
		if c == schemas.Kernel {
			return sqlValue{value: schemas.CallArguments.String() + "[" + sqlString(name) + "]"}
		}
		return f(c, a)
	}
}

// absoluteSQL is appendFromCwd. ClickHouse has no function that cleans a path:
// its elements are taken one after the other, ".." taking away the last.
func absoluteSQL(path string) string {
	joined := "concat(process_working_directory, '/', " + path + ")"
	// The elements are kept in one text, each with a slash before it.
	clean := "arrayFold((acc, s) -> multiIf(s = '' OR s = '.', acc, s != '..', concat(acc, '/', s), " +
		"acc = '' AND NOT startsWith(" + joined + ", '/') OR endsWith(acc, '/..'), if(startsWith(" + joined + ", '/'), acc, concat(acc, '/..')), " +
		"substring(acc, 1, length(acc) - length(splitByChar('/', acc)[-1]) - if(acc = '', 0, 1))), splitByChar('/', " + joined + "), CAST('', 'String'))"
	return "multiIf(" + path + " = '', '', startsWith(" + path + ", '/'), " + path + ", startsWith(" + joined + ", '/'), if(" + clean + " = '', '/', " + clean + "), if(" + clean + " = '', '.', substring(" + clean + ", 2)))"
}

func timesSQL(from, length int) sqlField {
	return textSQL(fmt.Sprintf("substring(toString(time), %d, %d)", from, length))
}

func isoTime(schemas.Class, *argument) sqlValue {
	return sqlValue{value: "concat(replaceOne(toString(time), ' ', 'T'), 'Z')"}
}

func workloadSQL(kind string) sqlField {
	return textSQL("if(k8s_workload_kind = " + sqlString(kind) + ", k8s_workload_name, '')")
}

func orNASQL(id schemas.FieldID) sqlField {
	return textSQL(fmt.Sprintf("if(%[1]s = '', '<NA>', %[1]s)", id))
}

func idNameSQL(name, id schemas.FieldID) sqlField {
	return textSQL(fmt.Sprintf("multiIf(%[1]s != '', %[1]s, %[2]s = 0, 'root', '<NA>')", name, id))
}

func inContainer(expr string) sqlField {
	return textSQL("if(container_id = '', 'host', " + expr + ")")
}

// uriParamSQL is uriParam.
func uriParamSQL(_ schemas.Class, a *argument) sqlValue {
	unescape := func(x string) string {
		return "if(countSubstrings(" + x + ", '%') = length(extractAll(" + x + ", '%[0-9A-Fa-f]{2}')), decodeURLFormComponent(" + x + "), " + x + ")"
	}
	cut := "position(p, '=')"
	key := "if(" + cut + " = 0, p, substring(p, 1, " + cut + " - 1))"
	value := "if(" + cut + " = 0, '', substring(p, " + cut + " + 1))"
	name := sqlString(a.text)
	query := "substring(audit_request_uri, position(audit_request_uri, '?') + 1)"
	values := "arrayMap(p -> " + unescape(value) + ", arrayFilter(p -> " + key + " = " + name + " OR " + unescape(key) + " = " + name + ", splitByChar('&', " + query + ")))"
	// A blank stands behind what is not empty.
	joined := "arrayFold((acc, v) -> if(acc = '', v, concat(acc, ' ', v)), " + values + ", CAST('', 'String'))"
	return sqlValue{value: "if(position(audit_request_uri, '?') = 0, '', " + joined + ")"}
}

var argsSQL = perClass(map[schemas.Class]string{
	schemas.Process: "multiIf(action = 'exec', concat('res=', " + resultSQL + ", ' exe=', process_command, ' args=', process_args, ' cwd=', process_working_directory, ' filename=', process_exec_filename), " +
		"action = 'exit', concat('ret=', toString(ifNull(process_exit_code, 0)), ' sig=', toString(ifNull(process_exit_signal, 0))), " +
		"action = 'fork', concat('res=', toString(result), ' flags=', process_clone_flags), '')",
	schemas.File: "concat(if(action = 'open', '', concat('res=', " + resultSQL + ")), multiIf(" +
		"action = 'rename', concat(' oldpath=', file_path, ' newpath=', file_path_target), " +
		"action = 'link', concat(' oldpath=', file_path_target, ' newpath=', file_path), " +
		"action = 'symlink', concat(' target=', file_path_target, ' linkpath=', file_path), " +
		"action IN ('unlink', 'rmdir'), concat(' path=', file_path), " +
		"action IN ('mkdir', 'chmod'), concat(' path=', file_path, ' mode=', " + modeSQL + "), " +
		"action = 'chown', concat(' path=', file_path, ' uid=', toString(file_user_id_new), ' gid=', toString(file_group_id_new)), " +
		"concat('fd=', toString(fd_number), ' name=', file_path, ' flags=', " + openFlagsSQL + ", ' mode=', " + modeSQL + ")))",
	schemas.Network: "concat('res=', " + resultSQL + ", ' fd=', toString(fd_number), if(action = 'socket', concat(' domain=', " + familySQL + ", ' type=SOCK_', upper(network_socket_type), ' proto=', toString(network_protocol_number)), concat(' tuple=', " + socketSQL + ")))",
	schemas.Kernel:  "concat('res=', " + resultSQL + ", arrayStringConcat(arrayMap((k, v) -> concat(' ', k, '=', v), mapKeys(syscall_arguments), mapValues(syscall_arguments))))",
})

// sqlFields are the computed fields by name.
var sqlFields = map[string]sqlField{
	"evt.num":            numberSQL("sequence", "(sequence != 0)"),
	"evt.time":           timesSQL(12, 18),
	"evt.time.s":         timesSQL(12, 8),
	"evt.time.iso8601":   isoTime,
	"evt.datetime":       timesSQL(1, 29),
	"evt.datetime.s":     timesSQL(1, 19),
	"evt.rawtime.s":      numberSQL("intDiv(toUnixTimestamp64Nano(time), 1000000000)", ""),
	"evt.rawtime.ns":     numberSQL("toInt64(toUnixTimestamp64Nano(time) % 1000000000)", ""),
	"evt.failed":         numberSQL("(result < 0)", ""),
	"evt.is_open_exec":   numberSQL("("+createdSQL+" AND bitAnd(file_mode, 73) != 0)", ""),
	"evt.is_open_create": numberSQL(createdSQL, ""),
	"evt.res":            textSQL(resultSQL),
	"evt.args":           argsSQL,
	"evt.info":           argsSQL,
	"evt.arg.flags": kernelArg("flags", perClass(map[schemas.Class]string{
		schemas.File: "if(action = 'open', " + openFlagsSQL + ", '')",
		schemas.Process: "multiIf(action = 'fork', process_clone_flags, process_executable_memfd AND process_executable_upper_layer, 'EXE_UPPER_LAYER|EXE_FROM_MEMFD', " +
			"process_executable_memfd, 'EXE_FROM_MEMFD', process_executable_upper_layer, 'EXE_UPPER_LAYER', '')",
	})),
	"evt.arg.path":     kernelArg("path", textSQL(ofCalls(schemas.FilePath, "unlink", "rmdir", "mkdir", "mkdirat", "chown", "lchown"))),
	"evt.arg.filename": textSQL(ofCalls(schemas.FilePath, "chmod", "fchmodat", "fchmodat2")),
	"evt.arg.uid":      kernelArg("uid", textSQL("if(action = 'chown', toString(file_user_id_new), '')")),
	"evt.arg.gid":      kernelArg("gid", textSQL("if(action = 'chown', toString(file_group_id_new), '')")),
	"evt.arg.pathname": textSQL(ofCalls(schemas.FilePath, "fchownat")),
	"evt.arg.oldpath":  changesSQL(schemas.FilePath, schemas.FilePathTarget),
	"evt.arg.newpath":  changesSQL(schemas.FilePathTarget, schemas.FilePath),
	"evt.arg.target":   textSQL(ofCalls(schemas.FilePathTarget, "symlink", "symlinkat")),
	"evt.arg.linkpath": textSQL(ofCalls(schemas.FilePath, "symlink", "symlinkat")),
	"evt.arg.mode":     textSQL(modeSQL),
	"evt.arg.sig":      kernelArg("sig", textSQL(signalSQL)),
	"evt.arg.domain":   ofSocketSQL(familySQL),
	"evt.arg.type":     kernelArg("type", ofSocketSQL("concat('SOCK_', upper(network_socket_type))")),
	"evt.arg.proto":    ofSocketSQL("toString(network_protocol_number)"),
	"evt.arg.tuple":    textSQL(socketSQL),

	"proc.cmdline":  textSQL(commandLineSQL(schemas.ProcessName, schemas.ProcessArgs)),
	"proc.exeline":  textSQL(commandLineSQL(schemas.ProcessCommand, schemas.ProcessArgs)),
	"proc.pcmdline": textSQL(commandLineSQL(schemas.ParentName, schemas.ParentArgs)),
	"proc.argv": func(_ schemas.Class, a *argument) sqlValue {
		return sqlValue{value: nthSQL(schemas.ProcessArgv, a.index)}
	},
	"proc.aname":    ancestorSQL(schemas.ProcessName.String(), schemas.AncestorNames),
	"proc.aexepath": ancestorSQL(schemas.ProcessExe.String(), schemas.AncestorExes),
	"proc.aexe":     ancestorSQL(schemas.ProcessCommand.String(), schemas.AncestorCommands),
	"proc.acmdline": func(_ schemas.Class, a *argument) sqlValue {
		switch {
		case a.text == "":
			return sqlValue{value: fmt.Sprintf("arrayFilter(l -> l != '', arrayMap(i -> %s, range(1, %d)))", ancestorLineSQL("i"), schemas.MaxAncestors+1)}
		case a.index == 0:
			return sqlValue{value: commandLineSQL(schemas.ProcessName, schemas.ProcessArgs)}
		}
		return sqlValue{value: ancestorLineSQL(strconv.Itoa(a.index))}
	},
	"proc.apid": func(_ schemas.Class, a *argument) sqlValue {
		if a.index == 0 {
			return sqlValue{value: schemas.ProcessPID.String()}
		}
		return parsedSQL(nthSQL(schemas.AncestorPIDs, a.index-1))
	},
	"proc.ppid.duration": numberSQL("("+nanoseconds(schemas.EventTime)+" - "+nanoseconds(schemas.ParentStart)+")", "("+nanoseconds(schemas.ParentStart)+" != 0)"),
	"proc.cmdnargs":      numberSQL("greatest(toInt64(length(process_command_args)) - 1, 0)", "(action = 'exec')"),
	"proc.cmdlenargs":    numberSQL("arraySum(a -> length(a), arraySlice(process_command_args, 2))", "(action = 'exec')"),
	"proc.duration":      numberSQL("toInt64(time_boot - process_start_boot)", "(process_start_boot != 0)"),
	"proc.env": func(_ schemas.Class, a *argument) sqlValue {
		if a.text != "" {
			return sqlValue{value: schemas.ProcessEnv.String() + "[" + sqlString(a.text) + "]"}
		}
		return sqlValue{value: mapSQL(schemas.ProcessEnv)}
	},
	"proc.exe_ino.ctime_duration_proc_start": numberSQL("("+nanoseconds(schemas.ProcessStart)+" - "+nanoseconds(schemas.ExeCtime)+")", "("+nanoseconds(schemas.ExeCtime)+" != 0)"),
	"proc.is_vpgid_leader":                   numberSQL("(process_group_leader_pid = process_pid)", ""),
	"proc.is_pgid_leader":                    numberSQL("(process_group_leader_pid = process_pid)", ""),
	"proc.is_sid_leader":                     numberSQL("(process_session_leader_pid = process_pid)", ""),
	"thread.ismain":                          numberSQL("(thread_id = process_pid)", ""),
	"thread.cap_effective":                   textSQL(bitNames("process_cap_effective", schemas.CapabilityNames[:], " ")),
	"thread.cap_permitted":                   textSQL(bitNames("process_cap_permitted", schemas.CapabilityNames[:], " ")),
	"user.name":                              idNameSQL(schemas.ProcessUserName, schemas.ProcessUserID),
	"user.loginname":                         orNASQL(schemas.ProcessLoginUserName),
	"group.name":                             idNameSQL(schemas.ProcessGroupName, schemas.ProcessGroupID),

	"fd.name":               textSQL(socketSQL),
	"fd.nameraw":            textSQL(socketSQL),
	"fd.paths":              textSQL("arrayFilter(p -> p != '', [file_path, file_path_host, file_path_target_host, file_path_linked])"),
	"fd.filename":           textSQL("splitByChar('/', file_path)[-1]"),
	"fd.directory":          textSQL(directorySQL),
	"fd.containername":      perClass(map[schemas.Class]string{schemas.File: "concat(" + shortSQL + ", ':', file_path)", schemas.Network: "concat(" + shortSQL + ", ':', " + socketSQL + ")"}),
	"fd.containerdirectory": textSQL("concat(" + shortSQL + ", ':', " + directorySQL + ")"),
	"fd.uid":                textSQL("concat(toString(thread_id), toString(fd_number))"),
	"fd.dev.major":          numberSQL("bitAnd(bitShiftRight(file_device, 8), 4095)", ""),
	"fd.dev.minor":          numberSQL("bitOr(bitAnd(file_device, 255), bitAnd(bitShiftRight(file_device, 12), 4294967040))", ""),
	"fd.type":               textSQL(fileTypeSQL),
	"fd.typechar": perClass(map[schemas.Class]string{schemas.File: "substring(" + fileTypeSQL + ", 1, 1)",
		schemas.Network: "transform(network_type, ['ipv4', 'ipv6', 'unix'], ['4', '6', 'u'], '')"}),
	"fd.sockfamily":   textSQL("transform(network_type, ['ipv4', 'ipv6', 'unix'], ['ip', 'ip', 'unix'], '')"),
	"fd.connected":    numberSQL("(action IN ('connect', 'accept', 'dup', 'close') AND result >= 0)", ""),
	"fd.name_changed": numberSQL("(action IN ('connect', 'send'))", ""),
	"fd.is_server":    numberSQL("("+inboundSQL+")", ""),
	"fd.cport":        numberSQL(clientPortSQL, ""),
	"fd.sport":        numberSQL(serverPortSQL, ""),
	"fd.cproto":       portTextSQL(clientPortSQL),
	"fd.sproto":       portTextSQL(serverPortSQL),
	"fd.lproto":       portTextSQL("network_local_port"),
	"fd.rproto":       portTextSQL("network_peer_port"),
	"fd.cip":          endSQL(clientIPSQL),
	"fd.cnet":         endSQL(clientIPSQL),
	"fd.sip":          endSQL(serverIPSQL),
	"fd.snet":         endSQL(serverIPSQL),
	"fd.lip":          endSQL("network_local_address"),
	"fd.lnet":         endSQL("network_local_address"),
	"fd.rip":          endSQL("network_peer_address"),
	"fd.rnet":         endSQL("network_peer_address"),
	"fd.sip.name":     textSQL("if(" + inboundSQL + ", '', network_peer_domain)"),
	"fd.cip.name":     textSQL("if(" + inboundSQL + ", network_peer_domain, '')"),

	"fs.path.name": perClass(map[schemas.Class]string{schemas.File: "if(result >= 0, " + ofCalls(schemas.FilePath, pathCalls...) + ", '')",
		schemas.Kernel: "if(result >= 0, " + ofCalls(schemas.FilePath, "umount", "umount2", "quotactl") + ", '')"}),
	"fs.path.source": perClass(map[schemas.Class]string{schemas.File: "if(result >= 0, " + ofCalls(schemas.FilePath, sourceCalls...) + ", '')",
		schemas.Kernel: "if(result >= 0 AND syscall = 'mount', " + absoluteSQL("file_path_target") + ", '')"}),
	"fs.path.target": perClass(map[schemas.Class]string{schemas.File: "if(result >= 0 AND syscall IN (" + sqlStrings(sourceCalls) + "), " + absoluteSQL("file_path_target") + ", '')",
		schemas.Kernel: "if(result >= 0, " + ofCalls(schemas.FilePath, "mount") + ", '')"}),

	"dns.question.domain": textSQL("arrayMap(i -> arrayStringConcat(arraySlice(splitByChar('.', dns_question_name), i + 1), '.'), range(1, length(splitByChar('.', dns_question_name))))"),

	"container.id":       inContainer(shortSQL),
	"container.full_id":  inContainer("container_id"),
	"container.name":     inContainer("if(k8s_container_name != '', k8s_container_name, container_name)"),
	"container.type":     inContainer("container_runtime"),
	"container.start_ts": numberSQL(nanoseconds(schemas.ContainerStart), "("+nanoseconds(schemas.ContainerStart)+" != 0)"),
	"container.duration": numberSQL("("+nanoseconds(schemas.EventTime)+" - "+nanoseconds(schemas.ContainerStart)+")", "("+nanoseconds(schemas.ContainerStart)+" != 0)"),
	"container.image":    textSQL("if(container_image_name = '' OR container_image_tag = '', container_image_name, concat(container_image_name, ':', container_image_tag))"),

	"k8s.deployment.name": workloadSQL("Deployment"),
	"k8s.ns.label": func(_ schemas.Class, a *argument) sqlValue {
		return sqlValue{value: schemas.NamespaceLabels.String() + "[" + sqlString(a.text) + "]"}
	},
	"k8s.pod.label": func(_ schemas.Class, a *argument) sqlValue {
		return sqlValue{value: schemas.PodLabels.String() + "[" + sqlString(a.text) + "]"}
	},

	"ka.auth.openshift.username": textSQL("audit_annotations['authentication.openshift.io/username']"),
	"ka.auth.openshift.decision": textSQL("audit_annotations['authentication.openshift.io/decision']"),
	"ka.uri.param":               uriParamSQL,
	"ka.target.pod.name":         textSQL("if(audit_resource = 'pods', audit_name, '')"),
	"ka.impuser.groups": func(_ schemas.Class, a *argument) sqlValue {
		return sqlValue{value: nthSQL(schemas.AuditImpersonatedGrp, a.index)}
	},
	"jevt.time":         timesSQL(12, 18),
	"jevt.time.iso8601": isoTime,
}

// notInSQL are the fields that have no expression, with the reason: a table of docs/hunting.md.
var notInSQL = map[string]string{
	"jevt.obj": "it is the whole event, which ClickHouse has as columns",
}

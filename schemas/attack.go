package schemas

import (
	"slices"
	"strings"
)

// AttackTechnique is a technique or sub-technique of MITRE ATT&CK for
// Enterprise, version AttackVersion.
type AttackTechnique struct {
	ID   string // as in T1611 or T1552.007
	Name string
	// Tactics are ids of tactics, in the order of their numbers.
	Tactics []string
	// Containers says that it is in ATT&CK's matrix for the platform Containers.
	Containers bool
}

// AttackTechniques returns, sorted by id, the techniques that Picket knows:
// the whole matrix for Containers, and of the rest of Enterprise what Linux
// hosts show. The result is shared: do not change it.
func AttackTechniques() []AttackTechnique { return attackTechniques }

// TechniqueByID returns the technique of an id, also by an id that ATT&CK has
// revoked since: T1562.001 gives T1685.
func TechniqueByID(id string) (AttackTechnique, bool) {
	if now, ok := attackRevoked[id]; ok {
		id = now
	}
	i, ok := slices.BinarySearchFunc(attackTechniques, id, func(t AttackTechnique, id string) int { return strings.Compare(t.ID, id) })
	if !ok {
		return AttackTechnique{}, false
	}
	return attackTechniques[i], true
}

// Tactics returns the ids of the tactics of a technique, as in TA0002, sorted;
// of a sub-technique that is not in the table those of its technique; nil
// where that is not known either. The result is shared: do not change it.
func Tactics(technique string) []string {
	t, ok := TechniqueByID(technique)
	if parent, _, sub := strings.Cut(technique, "."); !ok && sub {
		t, _ = TechniqueByID(parent)
	}
	return t.Tactics
}

// TacticName returns the name of a tactic by its id, "" for an id that
// Enterprise does not have.
func TacticName(id string) string {
	for _, t := range attackTactics {
		if t[0] == id {
			return t[1]
		}
	}
	return ""
}

// Version 19 has made two tactics of Defense Evasion: TA0005 is now Stealth,
// and what switches defences off is in TA0112.
var attackTactics = [...][2]string{
	{"TA0043", "Reconnaissance"}, {"TA0042", "Resource Development"}, {"TA0001", "Initial Access"}, {"TA0002", "Execution"},
	{"TA0003", "Persistence"}, {"TA0004", "Privilege Escalation"}, {"TA0005", "Stealth"}, {"TA0112", "Defense Impairment"},
	{"TA0006", "Credential Access"}, {"TA0007", "Discovery"}, {"TA0008", "Lateral Movement"}, {"TA0009", "Collection"},
	{"TA0011", "Command and Control"}, {"TA0010", "Exfiltration"}, {"TA0040", "Impact"},
}

// attackRevoked has the ids that rules of others still use, with their
// successors in version 19.
var attackRevoked = map[string]string{
	"T1562": "T1685", "T1562.001": "T1685", "T1562.003": "T1690", "T1562.004": "T1686", "T1562.006": "T1685", "T1562.010": "T1689",
	"T1562.012": "T1685.004", "T1070.002": "T1685.006",
}

// attackTechniques is taken from ATT&CK for Enterprise, version 19
// (https://attack.mitre.org/versions/v19/, matrix of the platform Containers
// and pages of the techniques). Sorted by id.
var attackTechniques = []AttackTechnique{
	{"T1003", "OS Credential Dumping", []string{"TA0006"}, false},
	{"T1003.007", "Proc Filesystem", []string{"TA0006"}, false},
	{"T1003.008", "/etc/passwd and /etc/shadow", []string{"TA0006"}, false},
	{"T1005", "Data from Local System", []string{"TA0009"}, false},
	{"T1007", "System Service Discovery", []string{"TA0007"}, false},
	{"T1014", "Rootkit", []string{"TA0005"}, false},
	{"T1016", "System Network Configuration Discovery", []string{"TA0007"}, false},
	{"T1018", "Remote System Discovery", []string{"TA0007"}, false},
	{"T1020", "Automated Exfiltration", []string{"TA0010"}, false},
	{"T1021", "Remote Services", []string{"TA0008"}, false},
	{"T1021.004", "SSH", []string{"TA0008"}, false},
	{"T1027", "Obfuscated Files or Information", []string{"TA0005"}, false},
	{"T1027.004", "Compile After Delivery", []string{"TA0005"}, false},
	{"T1027.009", "Embedded Payloads", []string{"TA0005"}, false},
	{"T1027.010", "Command Obfuscation", []string{"TA0005"}, false},
	{"T1027.013", "Encrypted/Encoded File", []string{"TA0005"}, false},
	{"T1030", "Data Transfer Size Limits", []string{"TA0010"}, false},
	{"T1033", "System Owner/User Discovery", []string{"TA0007"}, false},
	{"T1036", "Masquerading", []string{"TA0005"}, true},
	{"T1036.003", "Rename Legitimate Utilities", []string{"TA0005"}, false},
	{"T1036.004", "Masquerade Task or Service", []string{"TA0005"}, false},
	{"T1036.005", "Match Legitimate Resource Name or Location", []string{"TA0005"}, true},
	{"T1036.008", "Masquerade File Type", []string{"TA0005"}, false},
	{"T1036.010", "Masquerade Account Name", []string{"TA0005"}, true},
	{"T1036.011", "Overwrite Process Arguments", []string{"TA0005"}, false},
	{"T1037", "Boot or Logon Initialization Scripts", []string{"TA0003", "TA0004"}, false},
	{"T1037.004", "RC Scripts", []string{"TA0003", "TA0004"}, false},
	{"T1040", "Network Sniffing", []string{"TA0006", "TA0007"}, false},
	{"T1041", "Exfiltration Over C2 Channel", []string{"TA0010"}, false},
	{"T1046", "Network Service Discovery", []string{"TA0007"}, true},
	{"T1048", "Exfiltration Over Alternative Protocol", []string{"TA0010"}, false},
	{"T1048.003", "Exfiltration Over Unencrypted Non-C2 Protocol", []string{"TA0010"}, false},
	{"T1049", "System Network Connections Discovery", []string{"TA0007"}, false},
	{"T1053", "Scheduled Task/Job", []string{"TA0002", "TA0003", "TA0004"}, true},
	{"T1053.002", "At", []string{"TA0002", "TA0003", "TA0004"}, false},
	{"T1053.003", "Cron", []string{"TA0002", "TA0003", "TA0004"}, false},
	{"T1053.006", "Systemd Timers", []string{"TA0002", "TA0003", "TA0004"}, false},
	{"T1053.007", "Container Orchestration Job", []string{"TA0002", "TA0003", "TA0004"}, true},
	{"T1055", "Process Injection", []string{"TA0004", "TA0005"}, false},
	{"T1055.008", "Ptrace System Calls", []string{"TA0004", "TA0005"}, false},
	{"T1055.009", "Proc Memory", []string{"TA0004", "TA0005"}, false},
	{"T1056", "Input Capture", []string{"TA0006", "TA0009"}, false},
	{"T1057", "Process Discovery", []string{"TA0007"}, false},
	{"T1059", "Command and Scripting Interpreter", []string{"TA0002"}, true},
	{"T1059.004", "Unix Shell", []string{"TA0002"}, false},
	{"T1059.006", "Python", []string{"TA0002"}, false},
	{"T1059.007", "JavaScript", []string{"TA0002"}, false},
	{"T1059.013", "Container CLI/API", []string{"TA0002"}, true},
	{"T1068", "Exploitation for Privilege Escalation", []string{"TA0004"}, true},
	{"T1069", "Permission Groups Discovery", []string{"TA0007"}, true},
	{"T1070", "Indicator Removal", []string{"TA0005"}, true},
	{"T1070.003", "Clear Command History", []string{"TA0005"}, false},
	{"T1070.004", "File Deletion", []string{"TA0005"}, false},
	{"T1070.006", "Timestomp", []string{"TA0005"}, false},
	{"T1071", "Application Layer Protocol", []string{"TA0011"}, false},
	{"T1071.001", "Web Protocols", []string{"TA0011"}, false},
	{"T1071.004", "DNS", []string{"TA0011"}, false},
	{"T1072", "Software Deployment Tools", []string{"TA0002", "TA0008"}, false},
	{"T1074", "Data Staged", []string{"TA0009"}, false},
	{"T1074.001", "Local Data Staging", []string{"TA0009"}, false},
	{"T1078", "Valid Accounts", []string{"TA0001", "TA0003", "TA0004", "TA0005"}, true},
	{"T1078.001", "Default Accounts", []string{"TA0001", "TA0003", "TA0004", "TA0005"}, true},
	{"T1078.003", "Local Accounts", []string{"TA0001", "TA0003", "TA0004", "TA0005"}, true},
	{"T1078.004", "Cloud Accounts", []string{"TA0001", "TA0003", "TA0004", "TA0005"}, false},
	{"T1082", "System Information Discovery", []string{"TA0007"}, false},
	{"T1083", "File and Directory Discovery", []string{"TA0007"}, false},
	{"T1087", "Account Discovery", []string{"TA0007"}, false},
	{"T1087.001", "Local Account", []string{"TA0007"}, false},
	{"T1090", "Proxy", []string{"TA0011"}, false},
	{"T1090.001", "Internal Proxy", []string{"TA0011"}, false},
	{"T1090.002", "External Proxy", []string{"TA0011"}, false},
	{"T1090.003", "Multi-hop Proxy", []string{"TA0011"}, false},
	{"T1095", "Non-Application Layer Protocol", []string{"TA0011"}, false},
	{"T1098", "Account Manipulation", []string{"TA0003", "TA0004"}, true},
	{"T1098.004", "SSH Authorized Keys", []string{"TA0003", "TA0004"}, false},
	{"T1098.006", "Additional Container Cluster Roles", []string{"TA0003", "TA0004"}, true},
	{"T1098.007", "Additional Local or Domain Groups", []string{"TA0003", "TA0004"}, false},
	{"T1102", "Web Service", []string{"TA0011"}, false},
	{"T1105", "Ingress Tool Transfer", []string{"TA0011"}, false},
	{"T1106", "Native API", []string{"TA0002"}, false},
	{"T1110", "Brute Force", []string{"TA0006"}, true},
	{"T1110.001", "Password Guessing", []string{"TA0006"}, true},
	{"T1110.003", "Password Spraying", []string{"TA0006"}, true},
	{"T1110.004", "Credential Stuffing", []string{"TA0006"}, true},
	{"T1113", "Screen Capture", []string{"TA0009"}, false},
	{"T1132", "Data Encoding", []string{"TA0011"}, false},
	{"T1133", "External Remote Services", []string{"TA0001", "TA0003"}, true},
	{"T1136", "Create Account", []string{"TA0003"}, true},
	{"T1136.001", "Local Account", []string{"TA0003"}, true},
	{"T1140", "Deobfuscate/Decode Files or Information", []string{"TA0005"}, false},
	{"T1190", "Exploit Public-Facing Application", []string{"TA0001"}, true},
	{"T1195", "Supply Chain Compromise", []string{"TA0001"}, false},
	{"T1195.001", "Compromise Software Dependencies and Development Tools", []string{"TA0001"}, false},
	{"T1195.002", "Compromise Software Supply Chain", []string{"TA0001"}, false},
	{"T1203", "Exploitation for Client Execution", []string{"TA0002"}, false},
	{"T1204", "User Execution", []string{"TA0002"}, true},
	{"T1204.002", "Malicious File", []string{"TA0002"}, false},
	{"T1204.003", "Malicious Image", []string{"TA0002"}, true},
	{"T1205", "Traffic Signaling", []string{"TA0003", "TA0005", "TA0011"}, false},
	{"T1205.001", "Port Knocking", []string{"TA0003", "TA0005", "TA0011"}, false},
	{"T1205.002", "Socket Filters", []string{"TA0003", "TA0005", "TA0011"}, false},
	{"T1210", "Exploitation of Remote Services", []string{"TA0008"}, false},
	{"T1211", "Exploitation for Stealth", []string{"TA0005"}, false},
	{"T1219", "Remote Access Tools", []string{"TA0011"}, false},
	{"T1222", "File and Directory Permissions Modification", []string{"TA0112"}, false},
	{"T1222.002", "Linux and Mac Permissions", []string{"TA0112"}, false},
	{"T1485", "Data Destruction", []string{"TA0040"}, true},
	{"T1486", "Data Encrypted for Impact", []string{"TA0040"}, false},
	{"T1489", "Service Stop", []string{"TA0040"}, false},
	{"T1490", "Inhibit System Recovery", []string{"TA0040"}, true},
	{"T1496", "Resource Hijacking", []string{"TA0040"}, true},
	{"T1496.001", "Compute Hijacking", []string{"TA0040"}, true},
	{"T1496.002", "Bandwidth Hijacking", []string{"TA0040"}, true},
	{"T1497", "Virtualization/Sandbox Evasion", []string{"TA0005", "TA0007"}, false},
	{"T1498", "Network Denial of Service", []string{"TA0040"}, true},
	{"T1499", "Endpoint Denial of Service", []string{"TA0040"}, true},
	{"T1505", "Server Software Component", []string{"TA0003"}, false},
	{"T1505.003", "Web Shell", []string{"TA0003"}, false},
	{"T1518", "Software Discovery", []string{"TA0007"}, false},
	{"T1518.001", "Security Software Discovery", []string{"TA0007"}, false},
	{"T1525", "Implant Internal Image", []string{"TA0003"}, true},
	{"T1528", "Steal Application Access Token", []string{"TA0006"}, true},
	{"T1529", "System Shutdown/Reboot", []string{"TA0040"}, false},
	{"T1531", "Account Access Removal", []string{"TA0040"}, false},
	{"T1539", "Steal Web Session Cookie", []string{"TA0006"}, false},
	{"T1542", "Pre-OS Boot", []string{"TA0003", "TA0005"}, false},
	{"T1543", "Create or Modify System Process", []string{"TA0003", "TA0004"}, true},
	{"T1543.002", "Systemd Service", []string{"TA0003", "TA0004"}, false},
	{"T1543.005", "Container Service", []string{"TA0003", "TA0004"}, true},
	{"T1546", "Event Triggered Execution", []string{"TA0003", "TA0004"}, false},
	{"T1546.004", "Unix Shell Configuration Modification", []string{"TA0003", "TA0004"}, false},
	{"T1547", "Boot or Logon Autostart Execution", []string{"TA0003", "TA0004"}, false},
	{"T1547.006", "Kernel Modules and Extensions", []string{"TA0003", "TA0004"}, false},
	{"T1548", "Abuse Elevation Control Mechanism", []string{"TA0004"}, false},
	{"T1548.001", "Setuid and Setgid", []string{"TA0004"}, false},
	{"T1548.003", "Sudo and Sudo Caching", []string{"TA0004"}, false},
	{"T1550", "Use Alternate Authentication Material", []string{"TA0008"}, true},
	{"T1550.001", "Application Access Token", []string{"TA0008"}, true},
	{"T1552", "Unsecured Credentials", []string{"TA0006"}, true},
	{"T1552.001", "Credentials In Files", []string{"TA0006"}, true},
	{"T1552.003", "Shell History", []string{"TA0006"}, false},
	{"T1552.004", "Private Keys", []string{"TA0006"}, false},
	{"T1552.005", "Cloud Instance Metadata API", []string{"TA0006"}, false},
	{"T1552.007", "Container API", []string{"TA0006"}, true},
	{"T1553", "Subvert Trust Controls", []string{"TA0112"}, false},
	{"T1553.004", "Install Root Certificate", []string{"TA0112"}, false},
	{"T1554", "Compromise Host Software Binary", []string{"TA0003"}, false},
	{"T1555", "Credentials from Password Stores", []string{"TA0006"}, false},
	{"T1556", "Modify Authentication Process", []string{"TA0003", "TA0006", "TA0112"}, false},
	{"T1556.003", "Pluggable Authentication Modules", []string{"TA0003", "TA0006", "TA0112"}, false},
	{"T1557", "Adversary-in-the-Middle", []string{"TA0006", "TA0009"}, false},
	{"T1557.002", "ARP Cache Poisoning", []string{"TA0006", "TA0009"}, false},
	{"T1559", "Inter-Process Communication", []string{"TA0002"}, false},
	{"T1560", "Archive Collected Data", []string{"TA0009"}, false},
	{"T1560.001", "Archive via Utility", []string{"TA0009"}, false},
	{"T1561", "Disk Wipe", []string{"TA0040"}, false},
	{"T1564", "Hide Artifacts", []string{"TA0005"}, false},
	{"T1564.001", "Hidden Files and Directories", []string{"TA0005"}, false},
	{"T1565", "Data Manipulation", []string{"TA0040"}, false},
	{"T1567", "Exfiltration Over Web Service", []string{"TA0010"}, false},
	{"T1567.002", "Exfiltration to Cloud Storage", []string{"TA0010"}, false},
	{"T1568", "Dynamic Resolution", []string{"TA0011"}, false},
	{"T1569", "System Services", []string{"TA0002"}, false},
	{"T1569.003", "Systemctl", []string{"TA0002"}, false},
	{"T1570", "Lateral Tool Transfer", []string{"TA0008"}, false},
	{"T1571", "Non-Standard Port", []string{"TA0011"}, false},
	{"T1572", "Protocol Tunneling", []string{"TA0011"}, false},
	{"T1573", "Encrypted Channel", []string{"TA0011"}, false},
	{"T1574", "Hijack Execution Flow", []string{"TA0002", "TA0005"}, false},
	{"T1574.006", "Dynamic Linker Hijacking", []string{"TA0002", "TA0005"}, false},
	{"T1574.007", "Path Interception by PATH Environment Variable", []string{"TA0002", "TA0005"}, false},
	{"T1580", "Cloud Infrastructure Discovery", []string{"TA0007"}, false},
	{"T1601", "Modify System Image", []string{"TA0112"}, false},
	{"T1606", "Forge Web Credentials", []string{"TA0006"}, false},
	{"T1609", "Container Administration Command", []string{"TA0002"}, true},
	{"T1610", "Deploy Container", []string{"TA0002"}, true},
	{"T1611", "Escape to Host", []string{"TA0004"}, true},
	{"T1612", "Build Image on Host", []string{"TA0005"}, true},
	{"T1613", "Container and Resource Discovery", []string{"TA0007"}, true},
	{"T1620", "Reflective Code Loading", []string{"TA0005"}, false},
	{"T1622", "Debugger Evasion", []string{"TA0005", "TA0007"}, false},
	{"T1649", "Steal or Forge Authentication Certificates", []string{"TA0006"}, false},
	{"T1652", "Device Driver Discovery", []string{"TA0007"}, false},
	{"T1654", "Log Enumeration", []string{"TA0007"}, false},
	{"T1657", "Financial Theft", []string{"TA0040"}, false},
	{"T1659", "Content Injection", []string{"TA0001", "TA0011"}, false},
	{"T1665", "Hide Infrastructure", []string{"TA0011"}, false},
	{"T1668", "Exclusive Control", []string{"TA0003"}, false},
	{"T1677", "Poisoned Pipeline Execution", []string{"TA0002"}, false},
	{"T1680", "Local Storage Discovery", []string{"TA0007"}, false},
	{"T1685", "Disable or Modify Tools", []string{"TA0112"}, true},
	{"T1685.004", "Disable or Modify Linux Audit System Log", []string{"TA0112"}, false},
	{"T1685.006", "Clear Linux or Mac System Logs", []string{"TA0112"}, false},
	{"T1686", "Disable or Modify System Firewall", []string{"TA0112"}, false},
	{"T1687", "Exploitation for Defense Impairment", []string{"TA0112"}, false},
	{"T1689", "Downgrade Attack", []string{"TA0112"}, false},
	{"T1690", "Prevent Command History Logging", []string{"TA0112"}, false},
}

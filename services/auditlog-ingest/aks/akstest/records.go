// Package akstest is the Azure of the tests of package aks: an event hub that
// speaks AMQP 1.0 (EventHub), a storage account (Azurite), and the records in
// them.
package akstest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Audit returns the audit record number i, of about 600 bytes: its auditID is
// ID(i).
func Audit(i int) []byte {
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * time.Millisecond).Format("2006-01-02T15:04:05.000000Z")
	return fmt.Appendf(nil, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":%q,"stage":"ResponseComplete",`+
		`"requestURI":"/api/v1/namespaces/default/pods/p%d","verb":"get","user":{"username":"masterclient","groups":["system:masters","system:authenticated"]},`+
		`"sourceIPs":["10.0.0.1"],"userAgent":"kubectl","objectRef":{"resource":"pods","namespace":"default","name":"p%d","apiVersion":"v1"},`+
		`"responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":%q,"stageTimestamp":%q}`, ID(i), i, i, at, at)
}

// ID returns the auditID of Audit(i).
func ID(i int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", i) }

// Azure returns a record of Azure Monitor with log, any text, in
// properties.log.
func Azure(resource, category string, log []byte) []byte {
	// As JSON has it, but for bytes that are not UTF-8, which stay.
	var quoted strings.Builder
	for _, c := range log {
		switch {
		case c == '"', c == '\\':
			quoted.WriteByte('\\')
			quoted.WriteByte(c)
		case c < ' ':
			fmt.Fprintf(&quoted, `\u%04x`, c)
		default:
			quoted.WriteByte(c)
		}
	}
	r, _ := json.Marshal(resource) // a string can be marshalled
	return fmt.Appendf(nil, `{"operationName":"Microsoft.ContainerService/managedClusters/diagnosticLogs/Read","category":%q,"ccpNamespace":"5f0",`+
		`"resourceId":%s,"properties":{"log":"%s","stream":"stdout","pod":"kube-apiserver-5d8","containerID":"c0ffee"},`+
		`"time":"2026-11-23T10:00:00.0000000Z","Cloud":"AzureCloud","Environment":"prod"}`, category, r, quoted.String())
}

// Message returns the body of a message of an event hub with the records.
func Message(records ...[]byte) []byte {
	return append(append([]byte(`{"records": [`), bytes.Join(records, []byte(","))...), "]}"...)
}

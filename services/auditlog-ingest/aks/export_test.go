package aks

import (
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"picket/services/auditlog-ingest/source"
)

// SetCredential stands tokens of the tests in place of Entra ID's, which no
// test can reach.
func SetCredential(p source.Provider, c azcore.TokenCredential) { p.(*Provider).cred = c }

// SetAskFor sets how long a question may take.
func SetAskFor(p source.Provider, d time.Duration) { p.(*Provider).askFor = d }

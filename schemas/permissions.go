package schemas

// Permissions are the subjects a service's credentials allow, as NATS writes
// them. Each service has just what it needs.
type Permissions struct {
	Publish   []string
	Subscribe []string
}

// Services that have credentials of their own. ServiceAdmin creates streams
// and is what `picket migrate` and the operator's tools use; ServiceReader may
// only listen to alerts.
const (
	ServiceSensor   = "sensor"
	ServiceAudit    = "auditlog-ingest"
	ServiceEnricher = "enricher"
	ServiceDetector = "detector"
	ServiceSink     = "sink"
	ServiceReader   = "reader"
	ServiceAdmin    = "admin"
)

// AllServices lists every name that has credentials.
func AllServices() []string {
	return []string{ServiceSensor, ServiceAudit, ServiceEnricher, ServiceDetector, ServiceSink, ServiceReader, ServiceAdmin}
}

// PermissionsOf returns the permissions of a service. cluster and node bind a
// sensor to its own subjects and key, and an ingester to its cluster and those
// in more; "*" stands for any and suits one machine.
func PermissionsOf(service, cluster, node string, more ...string) Permissions {
	if cluster != "*" {
		cluster = Token(cluster)
	}
	if node != "*" {
		node = Token(node)
	}
	p := Permissions{
		Publish:   []string{"$JS.API.INFO", DeadSubject(service), "$JS.API.STREAM.INFO." + StreamDead},
		Subscribe: []string{"_INBOX_" + Token(service) + ".>"},
	}
	info := func(streams ...string) {
		for _, s := range streams {
			p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+s)
		}
	}
	consume := func(stream, durable string) {
		p.Publish = append(p.Publish, "$JS.API.CONSUMER.INFO."+stream+"."+durable,
			"$JS.API.CONSUMER.MSG.NEXT."+stream+"."+durable, "$JS.ACK."+stream+"."+durable+".>")
		info(stream)
	}
	// The right to read, list and write a bucket, or one key of it.
	bucket := func(name, key string, write bool) {
		s := "KV_" + name
		info(s)
		p.Publish = append(p.Publish, "$JS.API.DIRECT.GET."+s+".$KV."+name+"."+key,
			"$JS.API.CONSUMER.CREATE."+s+".*.$KV."+name+"."+key, "$JS.API.CONSUMER.DELETE."+s+".*", "$JS.FC."+s+".>")
		if write {
			p.Publish = append(p.Publish, "$KV."+name+"."+key)
		}
	}
	ownHealth := "picket.raw.*._" + Token(service) + "." + Health.String()
	switch service {
	case ServiceSensor:
		info(StreamRaw)
		p.Publish = append(p.Publish, "picket.raw."+cluster+"."+node+".*")
		key := cluster + "." + node
		bucket(BucketControl, key, false)
	case ServiceAudit:
		info(StreamRaw)
		p.Publish = append(p.Publish, "picket.raw."+cluster+".*."+Audit.String(), "picket.raw."+cluster+".*."+Health.String())
		for _, c := range more {
			p.Publish = append(p.Publish, "picket.raw."+Token(c)+".*."+Audit.String())
		}
		bucket(BucketCheckpoints, ">", true)
	case ServiceEnricher:
		consume(StreamRaw, DurableEnricher)
		info(StreamEvents)
		p.Publish = append(p.Publish, "picket.events.>", ownHealth)
		bucket(BucketMetadata, ">", true)
	case ServiceDetector:
		consume(StreamEvents, DurableDetector)
		consume(StreamAlerts, DurableAlertsWriter)
		consume(StreamMatch, "*")
		info(StreamRaw)
		p.Publish = append(p.Publish, "picket.alerts.>", "picket.match.*", "$JS.API.CONSUMER.UNPIN."+StreamMatch+".*", ownHealth,
			"$JS.API.STREAM.MSG.GET."+StreamAlerts, "$JS.API.DIRECT.GET."+StreamAlerts)
		bucket(BucketState, ">", true)
		bucket(BucketControl, ">", true)
		bucket(BucketRules, RulePackKey, false)
	case ServiceSink:
		consume(StreamEvents, DurableSink)
		info(StreamRaw)
		p.Publish = append(p.Publish, ownHealth,
			"$JS.API.STREAM.MSG.GET."+StreamEvents, "$JS.API.DIRECT.GET."+StreamEvents)
		bucket(BucketState, ">", true)
	case ServiceReader:
		p.Publish = []string{"$JS.API.INFO", "$JS.API.STREAM.INFO." + StreamAlerts, "$JS.API.STREAM.NAMES",
			"$JS.API.CONSUMER.CREATE." + StreamAlerts + ".>", "$JS.API.CONSUMER.INFO." + StreamAlerts + ".*",
			"$JS.API.CONSUMER.MSG.NEXT." + StreamAlerts + ".*", "$JS.API.CONSUMER.DELETE." + StreamAlerts + ".*",
			"$JS.ACK." + StreamAlerts + ".>", "$JS.FC." + StreamAlerts + ".>"}
		p.Subscribe = append(p.Subscribe, "picket.alerts.>")
	case ServiceAdmin:
		return Permissions{Publish: []string{">"}, Subscribe: []string{">"}}
	}
	return p
}

package translog

// AppliedPolicy is the event of [PolicyApplied].
type AppliedPolicy struct {
	Revision uint64
	Digest   Hash // SHA-256 of the document, which the log does not contain
	Comment  string
}

func (p *AppliedPolicy) facts(f facts) {
	f.addNumber("revision", int64(p.Revision)) //nolint:gosec // counts changes
	f["sha256"] = p.Digest.String()
	f.add("comment", p.Comment)
}

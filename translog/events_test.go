package translog

import (
	"math"
	"math/big"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/pki"
)

// gen returns n random bytes that are neither zero nor negative as a number.
func gen(t *rapid.T, label string, n int) []byte {
	b := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label)
	b[0] = b[0]&0x7f | 1
	return b
}

func genID[T any](t *rapid.T, label string, size int, parse func([]byte) (T, error)) T {
	id, err := parse(gen(t, label, size))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// genOptional draws an identifier, or zero.
func genOptional[T any](t *rapid.T, label string, size int, parse func([]byte) (T, error)) (id T) {
	if rapid.Bool().Draw(t, "has "+label) {
		id = genID(t, label, size, parse)
	}
	return id
}

func genRef(t *rapid.T, label string) (ref pki.CertRef) {
	if rapid.Bool().Draw(t, "has "+label) {
		ref.Issuer = genID(t, label+" issuer", 32, pki.IssuerIDFromBytes)
		ref.Serial = genID(t, label+" serial", 20, pki.SerialFromBytes)
	}
	return ref
}

func genOptionalTime(t *rapid.T, label string) (at time.Time) {
	if rapid.Bool().Draw(t, "has "+label) {
		at = genTime(t, label)
	}
	if at.UnixMilli() == 0 { // this millisecond stands for no time
		at = time.Time{}
	}
	return at
}

func genReason(t *rapid.T) pki.Reason {
	r, err := pki.ParseReason(rapid.SampledFrom(pki.ReasonNames()).Draw(t, "reason"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func genNumber(t *rapid.T, label string) *big.Int {
	return new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, label))
}

var text = rapid.StringN(0, 20, -1)

func count(t *rapid.T, label string) int { return rapid.IntRange(0, math.MaxInt32).Draw(t, label) }

func genPart(t *rapid.T) Part { return Part{Number: count(t, "part"), Of: count(t, "parts")} }

func genTimes(t *rapid.T, changes int) (times []time.Time) {
	if changes == 0 || rapid.Bool().Draw(t, "the same invalidity times") {
		return nil
	}
	for range changes {
		times = append(times, genOptionalTime(t, "invalidity time"))
	}
	return times
}

func genSelection(t *rapid.T, id pki.SPIFFEID) pki.Selection {
	s := pki.Selection{
		Issuer: genOptional(t, "issuer", 32, pki.IssuerIDFromBytes), Identity: rapid.SampledFrom([]pki.SPIFFEID{{}, id}).Draw(t, "selected"),
		Key: genOptional(t, "key", 32, pki.KeyHashFromBytes), Profile: text.Draw(t, "profile"),
		IssuedFrom: genOptionalTime(t, "from"), IssuedUntil: genOptionalTime(t, "until"),
	}
	if rapid.Bool().Draw(t, "has label") {
		s.Label = pki.Label{Name: text.Draw(t, "name"), Value: text.Draw(t, "value")}
	}
	return s
}

func genBulkRevocation(t *rapid.T, id pki.SPIFFEID) *BulkRevocation {
	b := &BulkRevocation{
		ID: int64(count(t, "id")), Action: rapid.SampledFrom([]BulkAction{BulkRevoke, BulkHold, BulkUnhold}).Draw(t, "bulk action"), Reason: genReason(t),
		InvalidSince: genOptionalTime(t, "invalid since"), Comment: text.Draw(t, "comment"), Mark: int64(count(t, "mark")),
		Reach: genOptionalTime(t, "reach"), AtOnce: rapid.Bool().Draw(t, "at once"), Selection: genSelection(t, id),
	}
	b.Selection.LineageOf = genRef(t, "lineage")
	return b
}

// events draws an event of each type, for an entry of an identity with the given number of changes.
var events = []func(t *rapid.T, id pki.SPIFFEID, changes int) Event{
	func(*rapid.T, pki.SPIFFEID, int) Event { return nil },
	genIssued,
	genAbandoned,
	genRefusal,
	genAttributes,
	genCreatedToken,
	genBoundToken,
	genRevokedTokens,
	genOrder,
	genBulk,
	genStep,
	genAuthority,
	genTakenNumber,
	genCRL,
	genPoints,
	genExpired,
	genPolicy,
	genStartedRotation,
	genEndedRotation,
	genRestored,
	func(t *rapid.T, _ pki.SPIFFEID, _ int) Event { return &AcceptedRestore{Hash(gen(t, "list", 32))} },
}

func genRevision(t *rapid.T) uint64 { return rapid.Uint64Range(0, math.MaxInt64).Draw(t, "revision") }

func genSubject(t *rapid.T) (s pki.EvidenceSubject) {
	if rapid.Bool().Draw(t, "has subject") {
		s = pki.EvidenceSubject{Kind: rapid.SampledFrom(pki.EvidenceKinds()).Draw(t, "kind of evidence"), Hash: [32]byte(gen(t, "subject", 32))}
	}
	return s
}

// genEvidence draws the evidence of a certificate. One piece may be the token that was spent.
func genEvidence(t *rapid.T, spent pki.TokenID) (e IssuanceEvidence) {
	if rapid.Bool().Draw(t, "no evidence") {
		return e
	}
	e.Rule, e.Policy, e.Subject = text.Draw(t, "rule"), genRevision(t), genSubject(t)
	for range rapid.IntRange(0, 2).Draw(t, "pieces") {
		e.Pieces = append(e.Pieces, EvidenceDigest{rapid.SampledFrom(pki.EvidenceKinds()).Draw(t, "kind of evidence"), Hash(gen(t, "digest", 32))})
	}
	if !spent.IsZero() {
		e.Pieces = append(e.Pieces, EvidenceDigest{pki.EvidenceToken, Hash(spent.Bytes())})
	}
	return e
}

func genTerms(t *rapid.T) (terms pki.Terms) {
	if rapid.Bool().Draw(t, "has terms") {
		terms.HardwareKey = rapid.Bool().Draw(t, "hardware key")
		if rapid.Bool().Draw(t, "has keys") {
			terms.Keys = rapid.SliceOfN(rapid.SampledFrom(pki.KeyTypes()), 1, 3).Draw(t, "keys")
		}
		terms.MaxLifetime = time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "lifetime"))
	}
	return terms
}

func genIssued(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	i := &IssuedCertificate{
		Profile: text.Draw(t, "profile"), Key: genID(t, "key", 32, pki.KeyHashFromBytes), NotBefore: genTime(t, "not before"),
		IssueTime: genTime(t, "issue time"), Partition: rapid.Uint16().Draw(t, "partition"), Predecessor: genOptional(t, "predecessor", 20, pki.SerialFromBytes),
		Token: genOptional(t, "token", 32, pki.TokenIDFromBytes), Enrolls: rapid.Bool().Draw(t, "enrolls"), Terms: genTerms(t),
	}
	i.Evidence = genEvidence(t, i.Token)
	return i
}

func genAbandoned(t *rapid.T, _ pki.SPIFFEID, changes int) Event {
	a := &AbandonedCertificates{Duplicate: genRef(t, "duplicate"), Part: genPart(t)}
	if rapid.Bool().Draw(t, "refused") {
		a.Refusal = &Refusal{Rule: pki.RuleAccess, Detail: text.Draw(t, "detail")}
	}
	for range changes {
		a.Certificates = append(a.Certificates, AbandonedCertificate{IssueTime: genTime(t, "issue time"), Partition: rapid.Uint16().Draw(t, "partition"), Digest: gen(t, "digest", 32)})
	}
	return a
}

func genRefusal(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	r := &Refusal{
		Rule: pki.Rule(text.Draw(t, "rule")), Detail: text.Draw(t, "detail"), Evidence: genEvidence(t, pki.TokenID{}),
	}
	if rapid.Bool().Draw(t, "without a digest") {
		kind := rapid.SampledFrom(pki.EvidenceKinds()).Draw(t, "kind without a digest")
		r.Evidence.Pieces = append(r.Evidence.Pieces, EvidenceDigest{Kind: kind})
	}
	return r
}

func genAttributes(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	i := &IdentityAttributes{
		Kind: rapid.SampledFrom([]pki.Kind{pki.Device, pki.Workload, pki.Operator, pki.Server, pki.VA}).Draw(t, "kind"), Profile: text.Draw(t, "profile"),
		DNSNames: rapid.SliceOfN(text, 1, 3).Draw(t, "names"), IPAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Labels: rapid.MapOfN(text, text, 1, 3).Draw(t, "labels"), Revision: genRevision(t), Subject: genSubject(t),
		Rule: text.Draw(t, "rule"), Roles: pki.Roles(rapid.Uint8Range(1, 15).Draw(t, "roles")),
	}
	return i
}

func genCreatedToken(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	e := &CreatedToken{
		ID: genID(t, "token", 32, pki.TokenIDFromBytes), IdentityRevision: genRevision(t), Profile: text.Draw(t, "profile"), ExpiresAt: genTime(t, "expires"),
		Replace: rapid.Bool().Draw(t, "replace"), CreatorCertificate: genRef(t, "creator"),
		RequiredKey: genOptional(t, "required key", 32, pki.KeyHashFromBytes),
	}
	if rapid.Bool().Draw(t, "has networks") {
		e.Networks = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}
	}
	if rapid.Bool().Draw(t, "has a pattern") {
		e.Pattern, e.Labels = "sensor/S[0-9]{6}", rapid.MapOfN(text, text, 1, 3).Draw(t, "labels")
		e.Kind = rapid.SampledFrom([]pki.Kind{pki.Device, pki.Workload}).Draw(t, "kind")
	}
	return e
}

func genBoundToken(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return &BoundToken{
		ID: genID(t, "token", 32, pki.TokenIDFromBytes), Request: genID(t, "request", 16, pki.RequestIDFromBytes), Key: genID(t, "key", 32, pki.KeyHashFromBytes),
	}
}

func genRevokedTokens(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return &RevokedTokens{
		ID: genOptional(t, "token", 32, pki.TokenIDFromBytes), Usable: count(t, "usable"), Cause: text.Draw(t, "cause"), Comment: text.Draw(t, "comment"),
	}
}

func genOrder(t *rapid.T, id pki.SPIFFEID, changes int) Event {
	o := &RequestedChange{
		Reason: genReason(t), InvalidSince: genOptionalTime(t, "invalid since"), Comment: text.Draw(t, "comment"),
		Key: genOptional(t, "key", 32, pki.KeyHashFromBytes), InvalidTimes: genTimes(t, changes), Part: genPart(t),
	}
	if rapid.Bool().Draw(t, "bulk") {
		o.BulkRevocation = genBulkRevocation(t, id)
	}
	return o
}

func genBulk(t *rapid.T, id pki.SPIFFEID, _ int) Event {
	return genBulkRevocation(t, id)
}

func genStep(t *rapid.T, _ pki.SPIFFEID, changes int) Event {
	s := &BulkStep{
		ID: int64(count(t, "id")), Counted: rapid.Bool().Draw(t, "counted"), Expired: count(t, "expired"), Applied: count(t, "applied"),
		Progress: int64(count(t, "progress")), Done: rapid.Bool().Draw(t, "done"), InvalidTimes: genTimes(t, changes), Part: genPart(t),
	}
	if s.Counted {
		s.Total = count(t, "total")
	}
	return s
}

func genAuthority(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	c := &CACertificate{
		Issuer: genID(t, "issuer", 32, pki.IssuerIDFromBytes), Subject: text.Draw(t, "subject"), Fingerprint: gen(t, "fingerprint", 32),
		KeyHash: genID(t, "key", 32, pki.KeyHashFromBytes), KeyLabel: text.Draw(t, "label"),
	}
	if rapid.Bool().Draw(t, "cross") {
		c.Signer = genID(t, "signer", 32, pki.IssuerIDFromBytes)
	}
	return c
}

func genTakenNumber(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return &CRLNumber{Issuer: genID(t, "issuer", 32, pki.IssuerIDFromBytes), Number: genNumber(t, "number")}
}

func genCRL(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	c := &PublishedCRL{
		Issuer: genID(t, "issuer", 32, pki.IssuerIDFromBytes), Partition: rapid.Uint16().Draw(t, "partition"), Delta: rapid.Bool().Draw(t, "delta"), Number: genNumber(t, "number"),
		ThisUpdate: genTime(t, "this update"), NextUpdate: genTime(t, "next update"), Position: genRevision(t), Digest: gen(t, "digest", 32),
		Size: int64(count(t, "size")), Entries: int64(count(t, "entries")), Imported: rapid.Bool().Draw(t, "imported"),
	}
	if rapid.Bool().Draw(t, "base") {
		c.BaseNumber, c.BaseUpdate, c.BasePosition = genNumber(t, "base number"), genTime(t, "base update"), genRevision(t)
	}
	return c
}

func genPoints(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return DistributionPoints{{Issuer: genID(t, "issuer", 32, pki.IssuerIDFromBytes), Partition: rapid.Uint16().Draw(t, "partition"), URL: text.Draw(t, "url"), DeltaURL: text.Draw(t, "delta url")}}
}

func genExpired(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return &ExpiredRecords{
		Certificates: count(t, "certificates"), Tokens: count(t, "tokens"), Keys: count(t, "keys"), Before: genOptionalTime(t, "before"),
		After: RecordPosition{genOptionalTime(t, "after"), int64(count(t, "after number"))}, Last: RecordPosition{genOptionalTime(t, "last"), int64(count(t, "last number"))},
	}
}

func genPolicy(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return &AppliedPolicy{Revision: 1 + genRevision(t)/2, Digest: Hash(gen(t, "digest", 32)), Comment: text.Draw(t, "comment")}
}

func genStartedRotation(t *rapid.T, id pki.SPIFFEID, _ int) Event {
	return &StartedRotation{
		ID: int64(count(t, "id")), Selection: genSelection(t, id), Comment: text.Draw(t, "comment"), Mark: int64(count(t, "mark")),
		Over:     time.Duration(rapid.Int64Range(1, int64(MaxRotation/time.Millisecond)).Draw(t, "over")) * time.Millisecond,
		Affected: count(t, "affected"),
	}
}

func genEndedRotation(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	return &EndedRotation{ID: int64(count(t, "id")), Renewed: count(t, "renewed"), Due: count(t, "due")}
}

func genRestored(t *rapid.T, _ pki.SPIFFEID, _ int) Event {
	r := &RestoredLog{Epoch: Epoch(gen(t, "epoch", 16)), Previous: Epoch(gen(t, "previous epoch", 16))}
	if rapid.Bool().Draw(t, "without archive") {
		r.List = Hash(gen(t, "list", 32))
	}
	for range rapid.IntRange(0, 2).Draw(t, "numbers") {
		r.Numbers = append(r.Numbers, CRLNumber{genID(t, "issuer", 32, pki.IssuerIDFromBytes), new(big.Int).SetBytes(gen(t, "number", 20))})
	}
	return r
}

package storetest

import (
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/crl"
	"github.com/brevet-pki/brevet/store/retention"
)

// history writes random records of every kind to a store.
type history struct {
	w          *world
	identities []pki.SPIFFEID
	records    []ca.Record
	tokens     []ra.Token
	subjects   []pki.EvidenceSubject
	policies   int

	externalKeys, accounts []acme.ID
	bulks                  []int64
	sweep                  retention.Position // where the next step of retention begins
}

// testReplay writes random histories, and replays their logs into empty stores.
func testReplay(t *testing.T, open func(t *testing.T) Store) {
	need(t, open(t).Replay != nil, "replay")
	rapid.Check(t, func(rt *rapid.T) {
		h := &history{w: newWorld(t, open(t))}
		rt.Cleanup(func() { h.w.close(t) })
		for range 3 {
			h.register(rt)
		}
		actions := map[string]func(*rapid.T){
			"register": h.register, "update": h.update, "issue": h.issue, "issue more": h.issue, "renew": h.renew, "renew again": h.renew, "recover": h.recover,
			"abandon": h.abandon, "token": h.token, "use token": h.useToken, "revoke tokens": h.revokeTokens, "change": h.change,
			"change identity": h.changeIdentity, "revoke key": h.revokeKey, "create bulk": h.createBulk, "apply bulk": h.applyBulkStep, "publish": h.publish,
			"points": h.points, "policy": h.policy, "account": h.account, "expire": h.expire, "later": h.later, "refuse": func(rt *rapid.T) { h.w.logRefusal(rt, "no") },
		}
		rt.Repeat(actions)
		h.w.mustReplay(t)
		if t.Failed() {
			rt.FailNow()
		}
	})
}

// allowRefusal fails the test for an error that is not a refusal. The store may refuse a random change.
func (h *history) allowRefusal(t *rapid.T, err error) {
	t.Helper()
	if _, refused := pki.AsRefusal(err); !refused {
		must(t, err)
	}
}

func (h *history) anyIdentity(t *rapid.T) pki.SPIFFEID {
	return rapid.SampledFrom(h.identities).Draw(t, "identity")
}

func (h *history) attributes(t *rapid.T, id *ra.Identity) {
	id.Profile = rapid.SampledFrom([]string{"device", "server"}).Draw(t, "profile")
	id.Labels, id.DNSNames, id.IPAddresses, id.Subject = nil, nil, nil, pki.EvidenceSubject{}
	if id.Kind == pki.Operator {
		id.Roles = rapid.SampledFrom([]pki.Roles{pki.RolesOf(pki.RoleAdmin), pki.RolesOf(pki.RoleRegistrar), pki.RolesOf(pki.RoleRevoker, pki.RoleAuditor)}).Draw(t, "roles")
	}
	if rapid.Bool().Draw(t, "tied") {
		id.Subject = h.subject(t)
	}
	if rapid.Bool().Draw(t, "labels") {
		id.Labels = map[string]string{"site": rapid.SampledFrom([]string{"north", "south"}).Draw(t, "site"), "empty": ""}
	}
	if rapid.Bool().Draw(t, "names") {
		id.DNSNames, id.IPAddresses = []string{"b.example", "a.example"}, []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	}
}

func (h *history) register(t *rapid.T) {
	id := h.w.newIdentity(t)
	id.Kind = rapid.SampledFrom([]pki.Kind{pki.Device, pki.Workload, pki.VA, pki.Operator}).Draw(t, "kind")
	switch id.Kind {
	case pki.VA:
		id.ID = delegateID(t, id.ID)
	case pki.Operator:
		id = h.w.newOperator(t)
	}
	h.attributes(t, &id)
	n := ra.Registration{Identity: id, Total: rapid.IntRange(0, 5).Draw(t, "total")}
	n.Rule = rapid.SampledFrom([]string{"", "cameras", "pumps"}).Draw(t, "rule")
	_, err := h.w.RA.CreateIdentity(context.Background(), n, operator)
	h.allowRefusal(t, err)
	if err == nil {
		h.identities = append(h.identities, id.ID)
	}
}

// subject draws a subject of evidence, which an identity may have already.
func (h *history) subject(t *rapid.T) pki.EvidenceSubject {
	if len(h.subjects) == 0 || rapid.Bool().Draw(t, "new subject") {
		h.subjects = append(h.subjects, h.w.subject())
	}
	return rapid.SampledFrom(h.subjects).Draw(t, "subject")
}

func (h *history) policy(t *rapid.T) {
	h.policies++
	based := rapid.Uint64Range(0, uint64(h.policies)).Draw(t, "based") //nolint:gosec // small
	_, err := h.w.Policies.ApplyPolicy(context.Background(), h.w.policy(fmt.Sprint(h.policies), based))
	h.allowRefusal(t, err)
	if err != nil {
		h.policies--
	}
}

func (h *history) update(t *rapid.T) {
	id := h.w.readIdentity(t, h.anyIdentity(t))
	h.attributes(t, &id)
	_, err := h.w.RA.UpdateIdentity(context.Background(), id, operator, h.w.now)
	h.allowRefusal(t, err)
}

func (h *history) record(t *rapid.T, id pki.SPIFFEID) ca.Record {
	r := h.w.record(t, id)
	r.Profile = rapid.SampledFrom([]string{"device", "server"}).Draw(t, "profile")
	r.Ref.Issuer = rapid.SampledFrom([]pki.IssuerID{issuerA, issuerB}).Draw(t, "issuer")
	r.Partition = rapid.SampledFrom([]uint16{1, 7, 65535}).Draw(t, "partition")
	r.NotAfter = h.w.now.Add(rapid.SampledFrom([]time.Duration{time.Minute, time.Hour, 24 * time.Hour}).Draw(t, "lifetime"))
	return r
}

func (h *history) add(t *rapid.T, r ca.Record) {
	err := h.w.commit(t, r)
	h.allowRefusal(t, err)
	if err == nil {
		h.records = append(h.records, r)
	}
}

func (h *history) issue(t *rapid.T) {
	id := h.w.readIdentity(t, h.anyIdentity(t))
	r := h.record(t, id.ID)
	if id.State == pki.Registered {
		r.Guard.Identity, r.Guard.Revision, r.Guard.Enrolls = id.ID, id.Revision, true
		if rapid.Bool().Draw(t, "evidence") {
			r.Guard.Subject, r.Guard.Nonces = h.subject(t), []pki.Nonce{h.w.nonce()}
			piece := pki.EvidenceDigest{Kind: r.Guard.Subject.Kind, Digest: h.w.unique()}
			r.Guard.Terms = rapid.SampledFrom([]pki.Terms{{}, strict, {MaxLifetime: time.Hour}}).Draw(t, "terms")
			r.Evidence = pki.EvidenceRecord{Pieces: []pki.EvidenceDigest{piece}, Rule: "a", Policy: 1}
		}
	}
	h.add(t, r)
}

func (h *history) renew(t *rapid.T) {
	if len(h.records) == 0 {
		return
	}
	before := rapid.SampledFrom(h.records).Draw(t, "predecessor")
	r := h.record(t, before.Identity)
	r.Guard.Predecessor, r.Guard.Supersedes = before.Ref, rapid.Bool().Draw(t, "supersedes")
	if rapid.Bool().Draw(t, "keeps the key") {
		r.KeyHash = before.KeyHash
		r.Guard.Key = r.KeyHash
	}
	r.Guard.Renewed = rapid.Bool().Draw(t, "renewed")
	h.add(t, r)
}

// abandon commits items without records. One of them may have a serial number that is already on record.
func (h *history) abandon(t *rapid.T) {
	var intended []ca.Record
	for range rapid.IntRange(1, 3).Draw(t, "items") {
		intended = append(intended, h.record(t, h.anyIdentity(t)))
	}
	if len(h.records) > 0 && rapid.Bool().Draw(t, "duplicate") {
		intended[0].Ref = rapid.SampledFrom(h.records).Draw(t, "duplicate of").Ref
	}
	h.w.commitBatch(t, h.w.writeIntent(t, intended...))
}

func (h *history) token(t *rapid.T) {
	id := h.w.readIdentity(t, h.anyIdentity(t))
	b := h.w.unique()
	tokenID, err := pki.TokenIDFromBytes(b[:])
	must(t, err)
	token := ra.Token{
		ID: tokenID, Identity: id.ID, IdentityRevision: id.Revision, Profile: "device", Replace: rapid.Bool().Draw(t, "replace"),
		ExpiresAt: h.w.now.Add(time.Duration(rapid.IntRange(1, 3).Draw(t, "hours")) * time.Hour), CreatedBy: operator, CreatedAt: h.w.now,
	}
	if len(h.records) > 0 && rapid.Bool().Draw(t, "by a caller") {
		r := rapid.SampledFrom(h.records).Draw(t, "creator")
		token.CreatedBy = pki.ActorCaller(r.Identity, r.Ref)
	}
	if rapid.Bool().Draw(t, "pattern") {
		token.Identity, token.IdentityRevision, token.Replace = pki.SPIFFEID{}, 0, false
		token.Pattern, token.Kind = "device/.*", rapid.SampledFrom([]pki.Kind{pki.Device, pki.Workload}).Draw(t, "kind")
		if rapid.Bool().Draw(t, "labels") {
			token.Labels = map[string]string{"batch": "7"}
		}
	}
	if rapid.Bool().Draw(t, "limited") {
		token.Networks, token.RequiredKey = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, h.w.key()
	}
	_, err = h.w.RA.CreateToken(context.Background(), token)
	h.allowRefusal(t, err)
	if err == nil {
		h.tokens = append(h.tokens, token)
	}
}

func (h *history) useToken(t *rapid.T) {
	if len(h.tokens) == 0 {
		return
	}
	token := rapid.SampledFrom(h.tokens).Draw(t, "token")
	b := ra.Binding{At: h.w.now}
	switch {
	case token.Pattern == "" || rapid.Bool().Draw(t, "registered"):
		b.Identity = h.w.readIdentity(t, h.anyIdentity(t))
	default:
		b.Identity = h.w.matching(t, token)
		b.Register = &ra.Registration{Identity: b.Identity}
	}
	claimed := token.Identity
	if claimed.IsZero() {
		claimed = b.Identity.ID
	}
	r := h.record(t, claimed)
	if !token.RequiredKey.IsZero() {
		r.KeyHash, r.Guard.Key = token.RequiredKey, token.RequiredKey
	}
	b.Request, b.Key = r.RequestID, r.KeyHash
	bound, err := h.w.RA.BindToken(context.Background(), token.ID, b)
	h.allowRefusal(t, err)
	if err == nil && b.Register != nil && bound.Identity == b.Identity.ID {
		h.identities = append(h.identities, bound.Identity)
	}
	if err != nil || bound.Identity != claimed || rapid.Bool().Draw(t, "only bind") {
		return
	}
	id := h.w.readIdentity(t, bound.Identity)
	r.Guard.Token, r.Guard.Identity, r.Guard.Revision, r.Guard.Enrolls = token.ID, id.ID, id.Revision, true
	r.Guard.Terms.HardwareKey = rapid.Bool().Draw(t, "key in hardware") // an enrolled identity enrolls again
	h.add(t, r)
}

func (h *history) revokeTokens(t *rapid.T) {
	v := ra.TokenRevocation{By: operator, Comment: "lost", At: h.w.now}
	if len(h.tokens) > 0 && rapid.Bool().Draw(t, "one") {
		v.ID = rapid.SampledFrom(h.tokens).Draw(t, "token").ID.String()
	} else {
		v.CreatedBy = h.anyIdentity(t)
	}
	_, err := h.w.RA.RevokeTokens(context.Background(), v)
	h.allowRefusal(t, err)
}

func (h *history) drawChange(t *rapid.T) revocation.Change {
	change := revocation.Change{Actor: operator, At: h.w.now, Comment: rapid.SampledFrom([]string{"", "stolen"}).Draw(t, "comment")}
	switch change.Action = rapid.SampledFrom([]revocation.Action{revoke, hold, unhold}).Draw(t, "action"); change.Action {
	case revoke:
		change.Reason = rapid.SampledFrom([]pki.Reason{pki.Superseded, pki.KeyCompromise, pki.PrivilegeWithdrawn}).Draw(t, "reason")
		if rapid.Bool().Draw(t, "with invalidity date") {
			change.InvalidSince = h.w.now.Add(-time.Hour)
		}
	case hold:
		change.Reason = pki.CertificateHold
	}
	return change
}

func (h *history) change(t *rapid.T) {
	if len(h.records) == 0 {
		return
	}
	change := h.drawChange(t)
	change.Certificate = rapid.SampledFrom(h.records).Draw(t, "certificate").Ref
	_, err := h.w.Statuses.Apply(context.Background(), change)
	h.allowRefusal(t, err)
}

func (h *history) changeIdentity(t *rapid.T) {
	change := h.drawChange(t)
	change.Identity = h.anyIdentity(t)
	switch {
	case change.Action == hold:
		change.State = pki.Suspended
	case change.Action == revoke && rapid.Bool().Draw(t, "retire"):
		change.State = pki.Retired
	}
	_, err := h.w.Statuses.Apply(context.Background(), change)
	h.allowRefusal(t, err)
}

func (h *history) revokeKey(t *rapid.T) {
	if len(h.records) == 0 {
		return
	}
	change := revocation.Change{
		Action: revoke, Reason: pki.KeyCompromise, Key: rapid.SampledFrom(h.records).Draw(t, "certificate").KeyHash, Actor: operator, At: h.w.now,
	}
	_, err := h.w.Statuses.Apply(context.Background(), change)
	h.allowRefusal(t, err)
}

func (h *history) createBulk(t *rapid.T) {
	if h.w.Revocation == nil || len(h.records) == 0 {
		return
	}
	var certs []*cert
	for _, r := range h.records {
		certs = append(certs, &cert{Record: r, issued: r.IssuedAt})
	}
	req := (&bulkModel{w: h.w, certs: certs}).drawBulkRequest(t)
	bulk, _, err := h.w.Revocation.CreateBulk(context.Background(), req)
	h.allowRefusal(t, err)
	if err == nil && !bulk.Done {
		h.bulks = append(h.bulks, bulk.ID)
	}
}

func (h *history) applyBulkStep(t *rapid.T) {
	if len(h.bulks) == 0 {
		return
	}
	ctx := context.Background()
	if rapid.Bool().Draw(t, "notify") {
		_, err := h.w.Revocation.NotifyBulk(ctx, h.bulks[0], pki.StatusObserverFunc(func([]pki.StatusChange) {}))
		must(t, err)
	}
	_, bulk, err := h.w.Revocation.ApplyBulk(ctx, h.bulks[0], rapid.IntRange(1, 3).Draw(t, "limit"), h.w.now)
	must(t, err)
	if bulk.Done {
		h.bulks = h.bulks[1:]
	}
}

func (h *history) publish(t *rapid.T) {
	if h.w.CRLs == nil {
		return
	}
	ctx := context.Background()
	issuer := rapid.SampledFrom([]pki.IssuerID{issuerA, issuerB}).Draw(t, "issuer")
	number, err := h.w.CRLs.TakeNumber(ctx, issuer, h.w.now)
	must(t, err)
	full := crl.CRL{Issuer: issuer, Number: number, ThisUpdate: h.w.now, NextUpdate: h.w.now.Add(time.Hour), Position: 3, SHA256: h.w.unique(), Size: 5, Entries: 2}
	part, delta := full, full
	part.Partition = rapid.SampledFrom([]uint16{1, 7, 65535}).Draw(t, "partition")
	part.Base = crl.Base{Number: number, ThisUpdate: h.w.now, Position: 3}
	delta.Partition, delta.Delta, delta.Base = part.Partition, true, crl.Base{Number: new(big.Int), ThisUpdate: h.w.now}
	all := []crl.CRL{full, part, delta}
	must(t, h.w.CRLs.PutCRLs(ctx, all[:rapid.IntRange(0, 3).Draw(t, "CRLs")], operator, h.w.now))
}

func (h *history) points(t *rapid.T) {
	if h.w.CRLs == nil {
		return
	}
	var points []crl.Point
	for n := range rapid.IntRange(1, 3).Draw(t, "points") {
		points = append(points, crl.Point{
			Issuer: issuerA, Partition: uint16(rapid.SampledFrom([]int{1, 7}).Draw(t, "partition")), //nolint:gosec // small
			URL: fmt.Sprintf("http://pki.example/%d.crl", n), DeltaURL: rapid.SampledFrom([]string{"", "http://pki.example/d.crl"}).Draw(t, "delta"),
		})
	}
	must(t, h.w.CRLs.PutPoints(context.Background(), points, h.w.now))
}

func (h *history) expire(t *rapid.T) {
	if h.w.Retention == nil {
		return
	}
	h.w.advanceAge(t)
	expired, err := h.w.Retention.Expire(context.Background(), retention.Step{
		Before: h.w.now, At: h.w.now, After: h.sweep, Limit: rapid.IntRange(1, 3).Draw(t, "limit"),
	})
	must(t, err)
	if h.sweep = expired.Next; !expired.More {
		h.sweep = retention.Position{}
	}
	h.forget()
}

// forget drops the records that retention has removed, so that later actions concern records of the store.
func (h *history) forget() {
	var records []ca.Record
	for _, r := range h.records {
		if _, err := h.w.RA.Certificate(context.Background(), r.Ref); err == nil {
			records = append(records, r)
		}
	}
	var tokens []ra.Token
	for _, token := range h.tokens {
		if _, err := h.w.RA.Token(context.Background(), token.ID); err == nil {
			tokens = append(tokens, token)
		}
	}
	h.records, h.tokens = records, tokens
}

func (h *history) later(t *rapid.T) {
	h.w.now = h.w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute)
}

package column

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/store/engine"
)

// Identity selects the columns of an identity n.
const Identity = `n.id, n.spiffe_id, n.kind, n.profile, n.labels, n.dns_names, n.ip_addresses, n.state, n.revision, n.created_at, n.subject, ` +
	`(SELECT name FROM policy_rules WHERE id = n.rule), n.terms, n.roles, n.recoveries`

// IdentityRow is a row of [Identity].
type IdentityRow struct {
	ID               int64 // of the row
	name             string
	kind             pki.Kind
	profile          string
	labels, dns, ips []byte
	state            pki.IdentityState
	revision         uint64
	created          int64
	subject          []byte
	roles            pki.Roles
	rule             sql.NullString
	terms            []byte
	recoveries       int
}

// Columns returns where to scan a row to.
func (r *IdentityRow) Columns() []any {
	return []any{&r.ID, &r.name, &r.kind, &r.profile, &r.labels, &r.dns, &r.ips, &r.state, &r.revision, &r.created, &r.subject, &r.rule, &r.terms, &r.roles, &r.recoveries}
}

// Identity decodes the row.
func (r *IdentityRow) Identity() (ra.Identity, error) {
	id := ra.Identity{
		Kind: r.kind, Profile: r.profile, State: r.state, Revision: r.revision, CreatedAt: engine.FromMillis(r.created),
		Roles: r.roles, Rule: r.rule.String, Recoveries: r.recoveries,
	}
	var err error
	if id.ID, err = pki.ParseSPIFFEID(r.name); err != nil {
		return ra.Identity{}, err
	}
	if id.Subject, err = DecodeSubject(r.subject); err != nil {
		return ra.Identity{}, fmt.Errorf("read the subject of %s: %w", r.name, err)
	}
	if id.Terms, err = DecodeTerms(r.terms); err != nil {
		return ra.Identity{}, fmt.Errorf("read the terms of %s: %w", r.name, err)
	}
	err = errors.Join(restoreJSON(r.labels, &id.Labels), restoreJSON(r.dns, &id.DNSNames), restoreJSON(r.ips, &id.IPAddresses))
	if err != nil {
		return ra.Identity{}, fmt.Errorf("read the attributes of %s: %w", r.name, err)
	}
	return id, nil
}

// restoreJSON decodes a JSON column of Particulars. The text null, the most frequent one, leaves into unchanged.
func restoreJSON(text []byte, into any) error {
	if string(text) == "null" {
		return nil
	}
	return json.Unmarshal(text, into)
}

// Particulars are the columns of an identity in JSON. An empty value is encoded as null, so that it is decoded as nil.
type Particulars struct{ Labels, DNSNames, IPAddresses string }

// EncodeParticulars returns the columns of an identity in JSON.
func EncodeParticulars(id ra.Identity) (Particulars, error) {
	var p Particulars
	for _, attribute := range []struct {
		into  *string
		empty bool
		value any
	}{
		{&p.Labels, len(id.Labels) == 0, id.Labels},
		{&p.DNSNames, len(id.DNSNames) == 0, id.DNSNames},
		{&p.IPAddresses, len(id.IPAddresses) == 0, id.IPAddresses},
	} {
		*attribute.into = "null"
		if attribute.empty {
			continue
		}
		text, err := json.Marshal(attribute.value)
		if err != nil {
			return p, fmt.Errorf("encode the attributes of %s: %w", id.ID, err)
		}
		*attribute.into = string(text)
	}
	return p, nil
}

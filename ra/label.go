package ra

import (
	"github.com/brevet-pki/brevet/pki"
)

// Label is what the policy says about the requests of clients of EST that use a label (RFC 7030 §3.2.2). The zero Label
// is that of requests without one, such as those over gRPC: it selects all rules, and accepts nothing else.
type Label struct {
	Name string
	// Rules are the names of the rules that may decide about enrollments. If it is empty, all rules may.
	Rules []string
	// Chain means that responses contain the CA certificates between the certificate and the root.
	Chain bool
	// Attributes says what the server tells about CSRs (RFC 7030 §4.5).
	Attributes CSRAttributes
	// Key is the type of key that the server suggests to clients. It is zero if the rules have no type in common, or all.
	Key pki.KeyType
	// RequireLinking refuses CSRs that are not linked to the connection (RFC 7030 §3.5).
	RequireLinking bool
	// AcceptNames accepts CSRs with any subject, extensions and attributes, and ignores them. Otherwise a CSR may only
	// request what the identity was granted.
	AcceptNames bool
}

// CSRAttributes is the form in which the server tells what a CSR should contain.
type CSRAttributes string

// The forms.
const (
	NoAttributes       CSRAttributes = "none"
	AttributeOIDs      CSRAttributes = "oids"     // object identifiers alone, which all clients understand (RFC 7030 §4.5.2)
	AttributesTemplate CSRAttributes = "template" // a CertificationRequestInfoTemplate (RFC 9908 §3.4)
)

// label returns the label with a name, and the zero Label if the name is empty.
func (r Revision) label(name string) (Label, error) {
	if name == "" {
		return Label{}, nil
	}
	l, ok := r.Labels[name]
	if !ok {
		return Label{}, RefuseLabel(name)
	}
	return l, nil
}

// RefuseLabel returns the refusal of a label that the policy does not have. It does not say which labels there are.
func RefuseLabel(name string) error {
	return pki.Refuse(pki.RuleLabel, "use a URL with a label of the policy (est.labels), or ask an operator to add this one",
		"there is no EST label %.64q", name)
}

// checkLinked refuses a CSR that is not linked to its connection if the label requires it.
func (l Label) checkLinked(linked bool) error {
	if linked || !l.RequireLinking {
		return nil
	}
	return pki.Refuse(pki.RuleLinking, "put the tls-unique value of the connection into the challengePassword of the CSR, "+
		"or with TLS 1.3 its tls-exporter value (RFC 7030 section 3.5, RFC 9266)",
		"label %s requires CSRs that are linked to the TLS connection, and this one is not", l.Name)
}

package acme

import "github.com/brevet-pki/brevet/pki"

// IdentifierRefusal is the refusal of one identifier of an order.
type IdentifierRefusal struct {
	Identifier Identifier // as the client sent it
	Refusal    *pki.Refusal
}

// IdentifierRefusals is the refusal of an order with several identifiers that are refused (RFC 8555 section 6.7.1).
type IdentifierRefusals struct{ All []IdentifierRefusal }

// Error implements error.
func (e *IdentifierRefusals) Error() string { return e.refusal().Error() }

// Unwrap returns one refusal of the whole order.
func (e *IdentifierRefusals) Unwrap() error { return e.refusal() }

func (e *IdentifierRefusals) refusal() *pki.Refusal {
	return pki.Refuse(pki.RuleACMEIdentifier, "order without these identifiers, or correct them; the subproblems say what is wrong with each",
		"%d identifiers of the order are refused", len(e.All))
}

// joinRefusals returns nil for no refusals, the refusal itself for one, and an IdentifierRefusals for several.
func joinRefusals(all []IdentifierRefusal) error {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0].Refusal
	default:
		return &IdentifierRefusals{all}
	}
}

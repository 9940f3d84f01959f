package ra

import "github.com/brevet-pki/brevet/pki"

// IssuerLabel is the name of a label on the identity of a validation authority. Its value is the ID, in hexadecimal, of
// the issuing CA whose OCSP responses the validation authority signs.
const IssuerLabel = "issuer"

// issueFor returns the issuing CA for a certificate of id. A validation authority needs a certificate from the CA whose
// OCSP responses it signs (RFC 6960 §4.2.2.2). For other identities it returns zero, which means the current CA.
func issueFor(id Identity) (pki.IssuerID, error) {
	if id.Kind != pki.VA {
		return pki.IssuerID{}, nil
	}
	return pki.ParseIssuerID(id.Labels[IssuerLabel])
}

// refuseKind returns the refusal of a profile that is not for the kind of the identity.
func refuseKind(id Identity, profile string) error {
	return pki.Refuse(pki.RuleAccess, "give the identity a profile that its kind may hold",
		"profile %s is not for identities of the kind %s", profile, id.Kind)
}

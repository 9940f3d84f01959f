package acme

// ParseCertID is for the fuzz target of identifiers of certificates.
var ParseCertID = parseCertID

// NewSmallNonceSet returns a set for the newest n nonces, which is a multiple of 64.
var NewSmallNonceSet = newNonceSet

// BreakValidator lets every validation panic.
func (d *Door) BreakValidator() { d.config.Validator = nil }

package ca

// TBSOf returns the TBSCertificate of a draft.
func TBSOf(d *Draft) []byte { return d.tbs }

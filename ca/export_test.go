package ca

// TBSOf returns what will be signed of a draft.
func TBSOf(d *Draft) []byte { return d.tbs }

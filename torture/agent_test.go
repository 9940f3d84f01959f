package torture

func runAgent() error { return nil }

type recorder struct{ inject string }

func (r *recorder) begin(t interface{}, dir string) []string { return nil }

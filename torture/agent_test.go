package torture

func runAgent() error { return nil }

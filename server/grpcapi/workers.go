package grpcapi

// maxIdleWorkers limits the goroutines that wait for work, and so the memory of their stacks.
const maxIdleWorkers = 128

// workers runs functions in goroutines that it reuses. The stack of a new goroutine is copied each time that it grows, which
// takes several percent of the processor time of an issue request.
type workers struct {
	work     chan func()
	idle     chan struct{} // contains a value for each goroutine that waits for work
	stopping <-chan struct{}
}

func newWorkers(stopping <-chan struct{}) *workers {
	return &workers{work: make(chan func()), idle: make(chan struct{}, maxIdleWorkers), stopping: stopping}
}

// run calls do in a goroutine.
func (w *workers) run(do func()) {
	select {
	case w.work <- do:
	default:
		go w.serve(do)
	}
}

// serve calls do, and then the functions that arrive, unless enough other goroutines wait for them.
func (w *workers) serve(do func()) {
	for do != nil {
		do()
		select {
		case w.idle <- struct{}{}:
		default:
			return
		}
		select {
		case do = <-w.work:
		case <-w.stopping:
			do = nil
		}
		<-w.idle
	}
}

package pki

// StatusObserver is notified of each change of status after the change is durable and before the caller gets a
// response. A responder that observes changes therefore never reports a status older than one in a response to a caller.
// Apply must be safe for concurrent use, must not block, and must not retain the slice. A change may arrive twice, late
// or out of order: of two statuses, the one with the higher Version is newer.
type StatusObserver interface {
	Apply(changes ...StatusChange)
}

// StatusObservers notifies each of its elements, in order.
type StatusObservers []StatusObserver

// Apply implements [StatusObserver].
func (all StatusObservers) Apply(changes ...StatusChange) {
	for _, o := range all {
		o.Apply(changes...)
	}
}

// StatusObserverFunc makes a function a [StatusObserver].
type StatusObserverFunc func(changes []StatusChange)

// Apply implements [StatusObserver].
func (f StatusObserverFunc) Apply(changes ...StatusChange) { f(changes) }

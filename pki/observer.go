package pki

// StatusObserver is notified of each status change. The change is then durable, and the caller has not yet got a
// response. A responder that is an observer therefore never reports an older status than the caller knows. Apply must
// be safe for concurrent use, must not block, and must not keep the slice. A change may arrive twice, late or out of
// order. Among several statuses of one certificate, the one with the highest Version is the newest.
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

// StatusObserverFunc is a function that implements [StatusObserver].
type StatusObserverFunc func(changes []StatusChange)

// Apply implements [StatusObserver].
func (f StatusObserverFunc) Apply(changes ...StatusChange) { f(changes) }

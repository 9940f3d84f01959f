package jwt

// The constants that tests need.
const (
	ClockSkew     = clockSkew
	MinInterval   = minInterval
	KeepFor       = keepFor
	MaxToken      = maxToken
	MaxKeys       = maxKeys
	MaxDepth      = maxDepth
	MaxCredential = maxCredential
)

// AwaitFetch waits for the fetch of a source's keys that is in progress.
func (a *Authenticator) AwaitFetch(issuer string) {
	r := a.sources[issuer].keys.(*remoteKeys)
	r.mu.Lock()
	ended := r.ended
	r.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// Refresh does what a source does every minute.
func (a *Authenticator) Refresh(issuer string) { a.sources[issuer].keys.(*remoteKeys).refresh() }

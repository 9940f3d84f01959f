package jws

import "sync"

// maxKeys is the maximum number of parsed keys that Keys has. They take about 1 KiB each.
const maxKeys = 4096

// Keys parses keys, and keeps them parsed, because an account signs many requests. The zero value is ready to use. It is safe
// for concurrent use.
type Keys struct {
	mu     sync.Mutex
	parsed map[string]*Key // by SubjectPublicKeyInfo
}

// ParseSPKI is like the function of this name. The caller must not change the key.
func (k *Keys) ParseSPKI(der []byte) (*Key, error) {
	k.mu.Lock()
	have := k.parsed[string(der)]
	k.mu.Unlock()
	if have != nil {
		return have, nil
	}
	parsed, err := ParseSPKI(der)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.parsed == nil {
		k.parsed = map[string]*Key{}
	}
	for other := range k.parsed { // in a random order
		if len(k.parsed) < maxKeys {
			break
		}
		delete(k.parsed, other)
	}
	k.parsed[string(der)] = parsed
	return parsed, nil
}

// Len returns the number of parsed keys.
func (k *Keys) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.parsed)
}

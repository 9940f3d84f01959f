package enroll

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// sourcePoll is the interval at which a Source checks for a new credential.
const sourcePoll = time.Second

// Source provides the credential that an agent writes to a directory, each renewed one, and each new trust bundle. It
// only reads the directory.
//
// [PeerServerTLS] and [PeerClientTLS] return TLS configurations for the Pair method of a Source. A Source implements
// the X.509 sources of go-spiffe ([x509svid.Source] and [x509bundle.Source]).
type Source struct {
	holder
	path string
	log  *slog.Logger
}

// OpenSource reads the credential in a directory. If there is none yet, it returns ErrNoCredential.
func OpenSource(path string, log *slog.Logger) (*Source, error) {
	s := &Source{path: path, log: log}
	p, err := ReadPair(path)
	if err != nil {
		return nil, err
	}
	s.use(p)
	return s, nil
}

// Run checks the directory every second until the context ends, and puts each new pair in use. If a new pair cannot be
// read, Run logs the error and keeps the previous pair. [Source.Watch] calls a function with each new pair.
func (s *Source) Run(ctx context.Context) {
	ticker := time.NewTicker(sourcePoll)
	defer ticker.Stop()
	var seen, logged string
	for {
		name, err := os.Readlink(filepath.Join(s.path, currentName))
		if err == nil && name != seen {
			var p *Pair
			if p, err = ReadPair(s.path); err == nil {
				seen = name
				if !p.sameAs(s.Pair()) {
					s.use(p)
				}
			}
		}
		if err != nil && logged != err.Error() {
			s.log.Error("reading the new credential failed, the previous one stays in use", "error", fmt.Sprint(err))
			logged = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

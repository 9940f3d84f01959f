package memory

import "fmt"

// Rows returns all records as text, by table. It leaves out DER, which the log does not contain.
func (st *Store) Rows() map[string][]string {
	st.mu.Lock()
	defer st.mu.Unlock()
	found := map[string][]string{"identities": {}, "tokens": {}, "distrusted": {}, "keys": {}, "certificates": {}, "policies": {},
		"external keys": {}, "accounts": {}}
	for id, on := range st.s.identities {
		found["identities"] = append(found["identities"], fmt.Sprintf("%s %+v %s", id, on.Identity, on.resumes))
	}
	for _, t := range st.s.tokens {
		found["tokens"] = append(found["tokens"], fmt.Sprintf("%x %+v", t.ID.Bytes(), t))
	}
	for id, n := range st.s.distrusted {
		found["distrusted"] = append(found["distrusted"], fmt.Sprintf("%s %d", id, n))
	}
	for hash, k := range st.s.keys {
		found["keys"] = append(found["keys"], fmt.Sprintf("%s %s %t", hash, k.identity, k.compromised))
	}
	for _, c := range st.s.certs {
		c.DER = nil
		found["certificates"] = append(found["certificates"], fmt.Sprintf("%+v %d %d", c.Certificate, c.supersededBy, c.partition))
	}
	for _, k := range st.s.acme.externalKeys {
		found["external keys"] = append(found["external keys"], fmt.Sprintf("%+v", k.ExternalKey))
	}
	for _, a := range st.s.acme.accounts {
		a.Contact = nil
		found["accounts"] = append(found["accounts"], fmt.Sprintf("%+v", a))
	}
	for _, p := range st.s.policies {
		p.Document = nil
		found["policies"] = append(found["policies"], fmt.Sprintf("%+v", p))
	}
	found["rotations"] = []string{}
	for _, r := range st.s.rotations {
		found["rotations"] = append(found["rotations"], fmt.Sprintf("%+v", r))
	}
	return found
}

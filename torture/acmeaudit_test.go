package torture

import (
	"database/sql"
	"errors"
	"strings"
)

// An orderRecord is an ACME order on record.
type orderRecord struct {
	serial     string // of its certificate, in hexadecimal; "" for none
	unapproved int    // number of its authorizations that are not valid
}

// An accountRecord is an ACME account on record.
type accountRecord struct {
	status      int // 1 valid, 2 deactivated, 3 revoked
	externalKey int
}

const validAccount = 1

func (s *snapshot) readACME(tx *sql.Tx) error {
	return errors.Join(
		query(tx, `SELECT hex(o.public_id), coalesce(hex(substr(o.certificate, 33)), ''),
		        (SELECT count(*) FROM acme_authorizations a WHERE a.acme_order = o.id AND a.status <> 2) FROM acme_orders o`,
			func(scan func(...any) error) error {
				var id string
				var o orderRecord
				err := scan(&id, &o.serial, &o.unapproved)
				s.orders[id] = o
				return err
			}),
		query(tx, `SELECT hex(public_id), status, coalesce(external_key, 0) FROM acme_accounts`, func(scan func(...any) error) error {
			var id string
			var a accountRecord
			err := scan(&id, &a.status, &a.externalKey)
			s.accounts[id] = a
			return err
		}),
	)
}

// byACME reports whether a certificate belongs to an identity that gets certificates by ACME alone.
func (r row) byACME() bool {
	path := strings.TrimPrefix(r.identity, "spiffe://"+trustDomain+"/")
	return strings.HasPrefix(path, acmeRule+"/") || strings.HasPrefix(path, "host/")
}

// checkACME compares orders and accounts with the certificates and with what clients observed.
func (a *auditor) checkACME(w *acmeWorld) {
	orderOf := map[string]string{}
	for id, o := range a.orders {
		if o.serial == "" {
			continue
		}
		if other, twice := orderOf[o.serial]; twice {
			a.faultf("the orders %s and %s have the same certificate", id, other)
		}
		orderOf[o.serial] = id
		if !a.records[o.serial].byACME() {
			a.faultf("order %s has the certificate %s, which is not on record", id, abbreviate(o.serial))
		}
		if o.unapproved > 0 {
			a.faultf("order %s has a certificate, but %d authorizations are not valid", id, o.unapproved)
		}
	}
	for serial, r := range a.records {
		if r.byACME() && orderOf[serial] == "" {
			a.faultf("certificate %s was issued by ACME, but no order has it", abbreviate(serial))
		}
	}
	accountOf := map[int]string{}
	for id, account := range a.accounts {
		if other, twice := accountOf[account.externalKey]; twice || account.externalKey == 0 {
			a.faultf("the accounts %s and %q have the same external key, or none", id, other)
		}
		accountOf[account.externalKey] = id
	}
	if w != nil {
		a.checkACMEObservations(w)
	}
}

func (a *auditor) checkACMEObservations(w *acmeWorld) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, serial := range w.orders {
		if a.orders[id].serial != serial {
			a.faultf("a client got certificate %s for order %s, which has %q", abbreviate(serial), id, a.orders[id].serial)
		}
	}
	for _, url := range w.bound {
		if a.accounts[lastID(url)].status == 0 {
			a.faultf("account %s was created, but is not on record", lastID(url))
		}
	}
	for url := range w.dead {
		if a.accounts[lastID(url)].status == validAccount {
			a.faultf("account %s was deactivated or revoked, but is valid", lastID(url))
		}
	}
}

// checkACMEHistory checks that since the previous snapshot no order lost its certificate, and no account became valid
// again.
func (a *auditor) checkACMEHistory(before *snapshot) {
	for id, was := range before.orders {
		if was.serial != "" && a.orders[id].serial != was.serial {
			a.faultf("order %s had certificate %s, and has %q now", id, abbreviate(was.serial), a.orders[id].serial)
		}
	}
	for id, was := range before.accounts {
		if is := a.accounts[id]; is.externalKey != was.externalKey || was.status != validAccount && is.status != was.status {
			a.faultf("account %s differs from the previous audit", id)
		}
	}
}

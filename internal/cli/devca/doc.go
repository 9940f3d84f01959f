// Package devca creates and opens a development CA in one directory: SoftHSM token, root, issuing CA, store and an
// operator's credential. It never touches the user's own SoftHSM configuration.
package devca

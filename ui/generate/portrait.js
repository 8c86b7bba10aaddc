// Portrait shows no untrained base, so it is not drawn there. The second input holds the ticked columns.
(run, columns, ...others) => {
  const named = columns.filter((column) => column !== 'none');
  const portrait = document.documentElement.dataset.view !== 'research';
  return [run, portrait && named.length ? named : columns, ...others];
}

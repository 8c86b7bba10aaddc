const cards = () => [...element.querySelectorAll('[role=radio]')];
const mark = (id) => {
  const all = cards(), chosen = all.find((card) => card.dataset.style === id);
  all.forEach((card) => {
    card.setAttribute('aria-checked', card === chosen ? 'true' : 'false');
    card.tabIndex = card === (chosen || all[0]) ? 0 : -1;
  });
};
let waiting = null;
const choose = (card, wait) => {
  mark(card.dataset.style);
  card.focus();
  card.scrollIntoView({block: 'nearest', inline: 'nearest'});
  clearTimeout(waiting);
  waiting = setTimeout(() => trigger('click', {style: card.dataset.style}), wait);
};
element.addEventListener('click', (event) => {
  const card = event.target.closest('[role=radio]');
  if (card) choose(card, 0);
});
element.addEventListener('keydown', (event) => {
  const all = cards(), at = all.indexOf(event.target.closest('[role=radio]'));
  const to = {ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: -1}[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  choose(all.at(to % all.length), 250);
});
watch('selected', () => mark(props.selected));
